"""T8: the mixed teacher anchor^(1 - a) policy^a, as a distribution and as the wide states that the learner reads."""

from __future__ import annotations

import pytest
import torch

from cluster.spec.composition import Term
from cluster.spec.objectives import ForwardKL, JensenShannon, ReverseKL
from cluster.spec.supports import FullSupport, TopKSupport
from cluster.spec.teachers import TrustRegionTeacher
from services.teacher.strategies import parts_of
from tests.properties.head import teacher_fields, through_the_head
from tests.properties.naive import geometric, gradient_at, random_logits, rows, values_of

TOLERANCE = {"atol": 1e-12, "rtol": 0}
FIRST = torch.zeros(6, dtype=torch.int64)
POLICY, ANCHOR = random_logits(80), random_logits(81)
SPECS = [ForwardKL(), ReverseKL(), JensenShannon(weight=0.3)]


def _loss(spec, teacher: torch.Tensor, support=None) -> tuple[torch.Tensor, torch.Tensor]:
    term = Term(name="distillation", objective=spec, support=support or FullSupport())
    return through_the_head(term, POLICY, FIRST, **teacher_fields(teacher, FIRST, full=True))


def test_t8_softmax_of_the_mixed_logits_is_the_normalised_geometric_mean():
    mix = 0.3
    expected = ANCHOR.softmax(-1) ** (1 - mix) * POLICY.softmax(-1) ** mix
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(torch.lerp(ANCHOR, POLICY, mix).softmax(-1), expected, **TOLERANCE)
    torch.testing.assert_close(geometric(ANCHOR.log_softmax(-1), POLICY.log_softmax(-1), mix).exp(), expected, **TOLERANCE)


@pytest.mark.parametrize("mix", [0.01, 0.4])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t8_a_shift_of_either_models_logits_at_a_position_changes_nothing(spec, mix):
    shift = torch.linspace(-5.0, 5.0, 6, dtype=torch.float64)[:, None]
    plain = _loss(spec, torch.lerp(ANCHOR, POLICY, mix).log_softmax(-1))
    shifted = _loss(spec, torch.lerp(ANCHOR + shift, POLICY - 2 * shift, mix).log_softmax(-1))
    for before, after in zip(plain, shifted, strict=True):
        torch.testing.assert_close(after, before, **TOLERANCE)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t8_mix_0_is_the_frozen_teacher_and_mix_1_the_policy(spec):
    frozen = _loss(spec, ANCHOR.log_softmax(-1))
    for before, after in zip(frozen, _loss(spec, torch.lerp(ANCHOR, POLICY, 0.0).log_softmax(-1)), strict=True):
        torch.testing.assert_close(after, before, **TOLERANCE)
    value, gradient = _loss(spec, torch.lerp(ANCHOR, POLICY, 1.0).log_softmax(-1))
    assert value.abs() < 1e-13 and gradient.abs().max() < 1e-13 and frozen[1].abs().max() > 0.01
    assert parts_of(TrustRegionTeacher(mix=0.0), "own") == (("own", 1.0),)
    assert [exponent for _, exponent in parts_of(TrustRegionTeacher(mix=1.0), "own")] == [1.0]


@pytest.mark.parametrize("mix", [0.01, 0.25, 0.9])
def test_t8_reverse_kl_to_it_is_a_leash_of_the_two_kls(mix):
    """KL(p || q) = (1 - a) KL(p || anchor) + a KL(p || policy) + log Z: towards the anchor, held back by the frozen policy."""
    anchor, now = ANCHOR.log_softmax(-1), POLICY.log_softmax(-1)
    log_z = torch.logsumexp((1 - mix) * anchor + mix * now, -1)
    elsewhere = random_logits(82).log_softmax(-1)

    def kl(teacher: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
        return values_of(ReverseKL(), rows(policy, FIRST, teacher=teacher, support=True))

    mixed = geometric(anchor, now, mix)
    expected = (1 - mix) * kl(anchor, elsewhere) + mix * kl(now, elsewhere) + log_z
    torch.testing.assert_close(kl(mixed, elsewhere), expected, **TOLERANCE)
    slope = gradient_at(POLICY, lambda policy: kl(mixed, policy))
    torch.testing.assert_close(slope, (1 - mix) * gradient_at(POLICY, lambda policy: kl(anchor, policy)), **TOLERANCE)


@pytest.mark.parametrize("support", [FullSupport(), TopKSupport(k=4, support_from="policy")], ids=lambda support: support.kind)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_t8_two_models_states_side_by_side_are_the_mixed_teacher(spec, support):
    """[h_1 | h_2] [(1 - a) W_1 | a W_2]' are its logits, whatever the two widths are."""
    generator = torch.Generator().manual_seed(83)
    mix, widths, vocabulary = 0.3, (3, 5), POLICY.shape[1]
    states = [torch.randn(6, width, generator=generator, dtype=torch.float64) for width in widths]
    heads = [torch.randn(vocabulary, width, generator=generator, dtype=torch.float64) for width in widths]
    teacher = geometric(*((h @ w.T).log_softmax(-1) for h, w in zip(states, heads, strict=True)), mix)
    term = Term(name="distillation", objective=spec, support=support)
    wide = {"teacher_logprobs": teacher[:, 0], "teacher_hidden": torch.cat(states, dim=1)}
    made = through_the_head(term, POLICY, FIRST, teacher_head=torch.cat(((1 - mix) * heads[0], mix * heads[1]), dim=1), **wide)
    for got, expected in zip(made, _loss(spec, teacher, support), strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE)
    assert made[1].abs().max() > 0.01
