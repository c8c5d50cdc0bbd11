"""T10: advantages of a group sum to zero, equal rewards teach nothing by themselves, Dr. GRPO's tokens weigh the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.spec.composition import Term
from cluster.spec.objectives import AdvantageSpec, EntropyBonus, PolicyGradient, ReferenceKL
from tests.properties.head import through_the_head
from tests.properties.naive import gradient_at, random_logits, rows, values_of
from trainer.advantages import outcome_advantages
from trainer.masks import CompletionView, MaskContext
from trainer.term_weights import weigh

SPECS = [
    AdvantageSpec(baseline=baseline, scale=scale)
    for baseline in ("group_mean", "leave_one_out")
    for scale in ("group_std", "batch_std", "none")
]
LOGITS = random_logits(100)
IDS = torch.arange(6)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.baseline}-{spec.scale}")
def test_t10_the_advantages_of_every_group_sum_to_zero(spec):
    groups = [[0.0, 1.0, 0.25, 1.0], [0.1, 0.7], [0.9, 0.3, 0.3, 0.3, 0.3]]
    for advantages in outcome_advantages(groups, spec):
        assert sum(advantages) == pytest.approx(0.0, abs=1e-12) and max(map(abs, advantages)) > 0.1


@pytest.mark.parametrize("score", [0.0, 1.0, 1 / 3])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.baseline}-{spec.scale}")
def test_t10_an_equal_group_has_exactly_no_policy_gradient(spec, score):
    equal, _ = outcome_advantages([[score] * 6, [0.0, 1.0]], spec)
    term = Term(name="policy_gradient", objective=PolicyGradient())
    advantages = torch.tensor(equal, dtype=torch.float64)
    value, gradient = through_the_head(term, LOGITS, IDS, advantages=advantages)
    assert value == 0.0 and gradient.abs().max() == 0.0


@pytest.mark.parametrize(
    "spec", [ReferenceKL(estimator="k2"), ReferenceKL(estimator="k3"), EntropyBonus()], ids=lambda s: f"{s.kind}"
)
def test_t10_a_penalty_keeps_an_equal_group_alive(spec):
    """Which is why a row is dead only when every term of it is."""
    reference = random_logits(101).log_softmax(-1).gather(1, IDS[:, None])[:, 0]
    _, gradient = through_the_head(Term(name="penalty", objective=spec), LOGITS, IDS, reference_logprobs=reference)
    assert (gradient.abs().amax(-1) > 1e-3).all()


def test_t10_the_penalties_expected_gradients_are_those_of_their_divergences():
    """k2: KL(policy || reference); k3: KL(reference || policy); k1: nothing, and it is refused. Entropy: -H itself."""
    reference = random_logits(101).log_softmax(-1)
    p, q = LOGITS.log_softmax(-1), reference
    kl = (p.exp() * (p - q)).sum(-1, keepdim=True)
    closed = {"k2": p.exp() * (p - q - kl), "k3": p.exp() - q.exp()}
    for estimator, expected in closed.items():
        total = torch.zeros_like(LOGITS)
        for token in range(LOGITS.shape[1]):
            ids = torch.full_like(IDS, token)
            spec = ReferenceKL(estimator=estimator)
            slope = gradient_at(
                LOGITS,
                lambda policy, ids=ids, spec=spec: values_of(
                    spec, rows(policy, ids, reference_logprobs=q.gather(1, ids[:, None])[:, 0])
                ),
            )
            total += p[:, token, None].exp() * slope
        torch.testing.assert_close(total, expected, atol=1e-12, rtol=0)
    entropy = -(p.exp() * p).sum(-1, keepdim=True)
    value, gradient = through_the_head(Term(name="bonus", objective=EntropyBonus()), LOGITS, IDS)
    torch.testing.assert_close(gradient, p.exp() * (p + entropy), atol=1e-12, rtol=0)
    assert value.item() == pytest.approx(-entropy.sum().item(), abs=1e-12)
    with pytest.raises(ValueError, match="zero expected gradient"):
        through_the_head(Term(name="penalty", objective=ReferenceKL(estimator="k1")), LOGITS, IDS)


def _token_gradient(normaliser: str, length: int) -> float:
    """Norm of one token's gradient in a completion of this length, all its tokens alike, advantage 1."""
    view = CompletionView(rollout_id="r", token_ids=np.zeros(length, np.int32), finish_reason="stop", table=None)
    term = Term(name="policy_gradient", objective=PolicyGradient(), normaliser=normaliser)
    weighed = weigh(term, view, MaskContext(step=0, max_tokens=8))
    weights = torch.from_numpy(weighed.weights).double()
    ones, ids = torch.ones(length, dtype=torch.float64), torch.zeros(length, dtype=torch.int64)
    _, gradient = through_the_head(term, LOGITS[:1].expand(length, -1), ids, weights=weights / weighed.share, advantages=ones)
    return gradient[0].norm().item()


def test_t10_dr_grpo_weighs_a_token_the_same_in_every_length_and_grpo_does_not():
    constant = [_token_gradient("constant", length) for length in (1, 2, 8)]
    assert constant == pytest.approx([constant[0]] * 3, rel=1e-12)
    mean = [_token_gradient("sequence_mean", length) for length in (1, 2, 8)]
    assert mean == pytest.approx([mean[0], mean[0] / 2, mean[0] / 8], rel=1e-6)
    assert constant[0] == pytest.approx(mean[0] / 8, rel=1e-6)
