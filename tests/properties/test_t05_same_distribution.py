"""T5: a teacher that is the policy teaches nothing: value 0 and gradient 0, in every mode that is not refused.

Per row where the mode has no sampled part; in expectation over the sampled token where it has one. Two modes do not keep
it, and are written down here as what they are: the reverse KL and the Jensen-Shannon divergence with a dropped tail (the
spec refuses them), and the forward KL with a dropped tail, whose gradient at policy = teacher is p q(S) - q on the support.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.spec.composition import Composition, Term
from cluster.spec.objectives import ForwardKL, JensenShannon, PolicyGradient, ReverseKL, TokenAdvantage
from cluster.spec.supports import FullSupport, SampledSupport, TopKSupport
from cluster.spec.teachers import EmaTeacher
from tests.properties.head import teacher_fields, through_the_head
from tests.properties.naive import gradient_at, on_support, random_logits, rows, values_of
from trainer.advantages import token_advantages

BOUND = 1e-13
DIVERGENCES = [ForwardKL(), ReverseKL(), JensenShannon(weight=0.5), JensenShannon(weight=0.1)]
CLIPS = {"entry_clip": 0.05, "token_clip": 0.1, "log_ratio_clip": 5.0}
LOGITS = random_logits(20)
TEACHER = LOGITS.log_softmax(-1)
FIRST = torch.zeros(len(LOGITS), dtype=torch.int64)


def _top(k: int, whose: str) -> torch.Tensor:
    """Ids of the k likeliest tokens, or k ids that another distribution likes."""
    return (TEACHER if whose == "policy" else random_logits(21)).topk(k, dim=-1).indices


def _hold_to_zero(row_values) -> None:
    assert row_values(TEACHER).abs().max() < BOUND
    assert gradient_at(LOGITS, row_values).abs().max() < BOUND


@pytest.mark.parametrize("clips", [{}, CLIPS], ids=["plain", "clips"])
@pytest.mark.parametrize("spec", DIVERGENCES, ids=lambda spec: f"{spec.kind}-{getattr(spec, 'weight', '')}")
def test_t5_full_vocabulary(spec, clips):
    spec = spec.model_copy(update=clips)
    _hold_to_zero(lambda policy: values_of(spec, rows(policy, FIRST, teacher=TEACHER, support=True)))


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("whose", ["policy", "another"])
@pytest.mark.parametrize("k", [1, 4, 9])
@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
@pytest.mark.parametrize("spec", DIVERGENCES, ids=lambda spec: f"{spec.kind}-{getattr(spec, 'weight', '')}")
def test_t5_top_k(spec, tail, k, whose, joined):
    ids = _top(k, whose)

    def row_values(policy: torch.Tensor) -> torch.Tensor:
        sides = (on_support(side, ids, tail, sampled=FIRST if joined else None) for side in (policy, TEACHER))
        policy_side, teacher_side = sides
        inputs = rows(policy, FIRST, teacher=TEACHER, policy_support_logprobs=policy_side, teacher_support_logprobs=teacher_side)
        return values_of(spec, inputs)

    _hold_to_zero(row_values)


def test_t5_sampled_reverse_kl():
    _hold_to_zero(lambda policy: values_of(ReverseKL(), rows(policy, FIRST, teacher=TEACHER)))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_t5_as_an_advantage(gamma, level):
    spec = TokenAdvantage(outcome_weight=0.0, teacher_weight=1.0, future_coupling=gamma, level=level)
    logprobs = TEACHER[:, 0].numpy()
    made = token_advantages(0.0, spec, num_tokens=len(logprobs), rollout_logprobs=logprobs, teacher_logprobs=logprobs)
    assert np.all(made.values == 0.0)
    objective = PolicyGradient(advantage=spec)
    advantages = torch.from_numpy(made.values).double()
    assert gradient_at(LOGITS, lambda policy: values_of(objective, rows(policy, FIRST, advantages=advantages))).abs().max() == 0.0


def _expected_over_tokens(row_values) -> torch.Tensor:
    """[R, V]: gradient, each token drawn with its probability; row_values(policy, ids)."""
    total = torch.zeros_like(LOGITS)
    for token in range(LOGITS.shape[1]):
        ids = torch.full_like(FIRST, token)
        total += TEACHER[:, token, None].exp() * gradient_at(LOGITS, lambda policy, ids=ids: row_values(policy, ids))
    return total


def test_t5_sampled_forward_kl_for_every_token():
    for token in range(LOGITS.shape[1]):
        inputs = rows(TEACHER, torch.full_like(FIRST, token), teacher=TEACHER)
        assert values_of(ForwardKL(), inputs).abs().max() < BOUND
    total = _expected_over_tokens(lambda policy, ids: values_of(ForwardKL(), rows(policy, ids, teacher=TEACHER)))
    assert total.abs().max() < BOUND


@pytest.mark.parametrize("whose", ["policy", "another"])
@pytest.mark.parametrize("k", [1, 4])
def test_t5_sampled_correction_value_per_row_gradient_in_expectation(k, whose):
    support = _top(k, whose)

    def row_values(policy: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        inputs = rows(
            policy,
            ids,
            teacher=TEACHER,
            policy_support_logprobs=on_support(policy, support, "sampled_correction"),
            teacher_support_logprobs=on_support(TEACHER, support, "sampled_correction"),
            sampled_outside=(support != ids[:, None]).all(-1),
        )
        return values_of(ReverseKL(), inputs)

    assert max(row_values(TEACHER, torch.full_like(FIRST, token)).abs().max() for token in range(9)) < BOUND
    assert _expected_over_tokens(row_values).abs().max() < BOUND


@pytest.mark.parametrize("clips", [{}, CLIPS], ids=["plain", "clips"])
@pytest.mark.parametrize("spec", DIVERGENCES, ids=lambda spec: f"{spec.kind}-{getattr(spec, 'weight', '')}")
@pytest.mark.parametrize(
    "support",
    [
        FullSupport(),
        *(TopKSupport(k=4, support_from=whose, tail=tail, join_sampled=joined)
          for whose in ("rollout", "policy", "teacher") for tail in ("bucket", "renormalise") for joined in (False, True)),
    ],
    ids=lambda support: "-".join(str(part) for part in support.model_dump().values()),
)  # fmt: skip
def test_t5_through_the_loss_head(spec, support, clips):
    term = Term(name="distillation", objective=spec.model_copy(update=clips), support=support)
    given = None
    if support.kind == "top_k" and support.support_from != "policy":
        given = _top(support.k, "another")
        given = torch.cat((given, FIRST[:, None]), dim=1) if support.join_sampled else given
    fields = teacher_fields(TEACHER, FIRST, support_ids=given, full=given is None)
    value, gradient = through_the_head(term, LOGITS, FIRST, **fields)
    assert abs(value) < BOUND and gradient.abs().max() < BOUND


def test_t5_through_the_loss_head_on_the_sampled_token():
    term = Term(name="distillation", objective=ReverseKL(), support=SampledSupport())
    value, gradient = through_the_head(term, LOGITS, FIRST, **teacher_fields(TEACHER, FIRST))
    assert abs(value) < BOUND and gradient.abs().max() < BOUND


@pytest.mark.parametrize("spec", [ReverseKL(), JensenShannon()], ids=lambda spec: spec.kind)
def test_t5_a_dropped_tail_that_breaks_it_is_refused(spec):
    support = TopKSupport(k=4, tail="drop")
    with pytest.raises(ValueError, match="tail is dropped"):
        Composition(teacher=EmaTeacher(), terms=(Term(name="distillation", objective=spec, support=support),))


def _dropped(spec, ids: torch.Tensor):
    def row_values(policy: torch.Tensor) -> torch.Tensor:
        sides = [on_support(side, ids, "drop") for side in (policy, TEACHER)]
        return values_of(spec, rows(policy, FIRST, policy_support_logprobs=sides[0], teacher_support_logprobs=sides[1]))

    return row_values


def test_t5_reverse_kl_with_a_dropped_tail_pushes_mass_off_the_support():
    """Why it is refused: at policy = teacher its gradient is that of p(S), so a step lowers the policy's mass on S."""
    ids = _top(4, "policy")
    mass = gradient_at(LOGITS, lambda policy: policy.gather(1, ids).exp().sum(-1))
    torch.testing.assert_close(gradient_at(LOGITS, _dropped(ReverseKL(), ids)), mass, atol=1e-14, rtol=0)
    assert mass.abs().max() > 0.05


def test_t5_forward_kl_with_a_dropped_tail_is_not_stationary_at_the_teacher():
    """What entropy-aware OPD's top-K term (2603.07079) does: it pulls mass onto the support, towards q / q(S)."""
    ids = _top(4, "policy")
    p = TEACHER.exp()
    on = torch.zeros_like(p).scatter_(1, ids, 1.0)
    mass = (p * on).sum(-1, keepdim=True)
    torch.testing.assert_close(gradient_at(LOGITS, _dropped(ForwardKL(), ids)), p * mass - p * on, atol=1e-14, rtol=0)
    inside = torch.where(on > 0, (p / mass).log(), -60.0)
    assert gradient_at(inside, _dropped(ForwardKL(), ids)).abs().max() < 1e-12
