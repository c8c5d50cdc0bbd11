"""T12: what a random mask does to a loss: with which denominator it thins the signal, and with which it only adds noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cluster.spec.composition import Composition, Term
from cluster.spec.masks import RandomMask
from cluster.spec.objectives import ForwardKL
from cluster.spec.supports import FullSupport
from cluster.spec.teachers import EmaTeacher
from tests.properties.head import teacher_fields, through_the_head
from tests.properties.naive import random_logits
from trainer.masks import CompletionView, MaskContext
from trainer.term_weights import weigh

LENGTH = 6
LOGITS, TEACHER = random_logits(120), random_logits(121).log_softmax(-1)
IDS = torch.zeros(LENGTH, dtype=torch.int64)
SEEDS = 400


def _term(*masks: RandomMask) -> Term:
    return Term(name="distillation", objective=ForwardKL(), support=FullSupport(), masks=masks)


def _weighed(term: Term, rollout: str, length: int = LENGTH):
    view = CompletionView(rollout_id=rollout, token_ids=np.zeros(length, np.int32), finish_reason="stop", table=None)
    return weigh(term, view, MaskContext(step=0, max_tokens=length))


def _loss(weights: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    return through_the_head(_term(), LOGITS, IDS, weights=weights / share, **teacher_fields(TEACHER, IDS, full=True))


@pytest.mark.parametrize("denominator", ["kept", "all"])
def test_t12_ratio_0_is_off(denominator):
    plain, masked = _weighed(_term(), "r"), _weighed(_term(RandomMask(ratio=0.0, denominator=denominator)), "r")
    assert np.array_equal(plain.weights, masked.weights) and plain.share == masked.share == LENGTH


def test_t12_ratio_1_leaves_no_token_and_is_refused():
    term = _term(RandomMask(ratio=1.0))
    weighed = _weighed(term, "r")
    assert weighed.weights is None and weighed.share == 0.0
    with pytest.raises(ValueError, match="ratio 1 leaves no token"):
        Composition(teacher=EmaTeacher(), terms=(term,))
    value, gradient = _loss(torch.zeros(LENGTH, dtype=torch.float64), 1.0)
    assert value == 0.0 and gradient.abs().max() == 0.0


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_t12_the_kept_share_is_one_minus_the_ratio(ratio):
    """Of 400 completions of 100 tokens; the bound is five standard errors."""
    term = _term(RandomMask(ratio=ratio))
    kept = sum(int(_weighed(term, f"r{seed}", 100).weights.astype(bool).sum()) for seed in range(SEEDS))
    assert kept / (SEEDS * 100) == pytest.approx(1 - ratio, abs=5 * np.sqrt(ratio * (1 - ratio) / (SEEDS * 100)))


def _expected_gradient(ratio: float, denominator: str) -> tuple[torch.Tensor, float]:
    """(mean, total variance) of the loss's gradient over all 2^6 masks with their probabilities."""
    per_token = _loss(torch.ones(LENGTH, dtype=torch.float64), 1.0)[1]
    mean, square = torch.zeros_like(per_token), 0.0
    for bits in itertools.product((0.0, 1.0), repeat=LENGTH):
        kept = torch.tensor(bits, dtype=torch.float64)
        probability = ratio ** (LENGTH - sum(bits)) * (1 - ratio) ** sum(bits)
        share = max(sum(bits), 1.0) if denominator == "kept" else LENGTH
        gradient = kept[:, None] * per_token / share
        mean += probability * gradient
        square += probability * gradient.square().sum().item()
    return mean, square - mean.square().sum().item()


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_t12_over_kept_tokens_the_mean_gradient_stays_and_over_all_tokens_it_shrinks(ratio):
    """kept: (1 - ratio^T) of the unmasked one, short only by completions with no token left; all: 1 - ratio of it."""
    unmasked, _ = _expected_gradient(0.0, "kept")
    (kept, kept_variance), (over_all, all_variance) = (_expected_gradient(ratio, denominator) for denominator in ("kept", "all"))
    torch.testing.assert_close(kept, (1 - ratio**LENGTH) * unmasked, atol=1e-13, rtol=0)
    torch.testing.assert_close(over_all, (1 - ratio) * unmasked, atol=1e-13, rtol=0)
    assert kept_variance > all_variance > 0.0


@pytest.mark.parametrize("denominator", ["kept", "all"])
def test_t12_the_projects_weights_are_those_of_the_enumeration(denominator):
    """Each mask that was drawn gives the gradient of its bits: sum of kept tokens over kept, or over all."""
    term = _term(RandomMask(ratio=0.5, denominator=denominator))
    per_token = _loss(torch.ones(LENGTH, dtype=torch.float64), 1.0)[1]
    seen = set()
    for seed in range(40):
        weighed = _weighed(term, f"r{seed}")
        if weighed.weights is None:
            continue
        weights = torch.from_numpy(weighed.weights).double()
        kept = weights > 0
        seen.add(tuple(kept.tolist()))
        _, gradient = _loss(weights, weighed.share)
        expected = kept[:, None] * per_token / (int(kept.sum()) if denominator == "kept" else LENGTH)
        torch.testing.assert_close(gradient, expected, atol=1e-13, rtol=0)
    assert len(seen) > 20
