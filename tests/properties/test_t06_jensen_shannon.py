"""T6: 0 <= JSD <= ln 2 at one half, and the two limits of the generalised form."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from cluster.spec.objectives import ForwardKL, JensenShannon, ReverseKL
from tests.properties import naive
from tests.properties.naive import gradient_at, random_logits, rows, values_of

FIRST = torch.zeros(6, dtype=torch.int64)


def _values(spec, policy: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return values_of(spec, rows(policy, FIRST, teacher=teacher, support=True))


@pytest.mark.parametrize("weight", [0.05, 0.3, 0.5, 0.9])
def test_t6_equals_the_naive_version(weight):
    policy, teacher = random_logits(30).log_softmax(-1), random_logits(31).log_softmax(-1)
    naive_values = [
        naive.jensen_shannon(p, q, weight) for p, q in zip(policy.exp().tolist(), teacher.exp().tolist(), strict=True)
    ]
    assert _values(JensenShannon(weight=weight), policy, teacher).tolist() == pytest.approx(naive_values, abs=1e-13)


@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
def test_t6_at_one_half_it_is_bounded_by_ln_2_and_symmetric(scale):
    policy, teacher = (random_logits(seed, scale=scale).log_softmax(-1) for seed in (32, 33))
    values = _values(JensenShannon(), policy, teacher)
    assert (values >= 0).all() and (values <= math.log(2) + 1e-12).all()
    torch.testing.assert_close(values, _values(JensenShannon(), teacher, policy), atol=1e-13, rtol=0)


def test_t6_ln_2_is_reached_by_distributions_that_share_nothing():
    policy = torch.tensor([[0.0, -80.0], [-80.0, 0.0]], dtype=torch.float64).log_softmax(-1)
    values = values_of(JensenShannon(), rows(policy, FIRST[:2], teacher=policy.flip(-1), support=True))
    assert values.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-13)


@pytest.mark.parametrize(("limit", "near"), [(ForwardKL(), lambda w: w), (ReverseKL(), lambda w: 1.0 - w)])
def test_t6_limits_of_value_and_gradient_first_order_in_the_weight(limit, near):
    """|JSD_w / w - KL| falls in proportion to w: ten times nearer, ten times closer."""
    logits, teacher = random_logits(34), random_logits(35).log_softmax(-1)
    expected = (
        _values(limit, logits.log_softmax(-1), teacher),
        gradient_at(logits, lambda policy: _values(limit, policy, teacher)),
    )
    errors = []
    for small in (1e-3, 1e-4, 1e-5):
        spec = JensenShannon(weight=near(small))
        value = _values(spec, logits.log_softmax(-1), teacher) / small
        gradient = gradient_at(logits, lambda policy, spec=spec: _values(spec, policy, teacher)) / small
        errors.append([(value - expected[0]).abs().max().item(), (gradient - expected[1]).abs().max().item()])
    for coarse, fine in itertools.pairwise(errors):
        assert fine == pytest.approx([error / 10 for error in coarse], rel=0.15)
    assert max(errors[-1]) < 1e-2


def test_t6_the_magnitude_jumps_at_the_ends():
    """A sweep of the weight sweeps the step size as well: at 0.01 the loss is a hundredth of the forward KL, not near it."""
    policy, teacher = random_logits(36).log_softmax(-1), random_logits(37).log_softmax(-1)
    ratio = _values(JensenShannon(weight=0.01), policy, teacher) / _values(ForwardKL(), policy, teacher)
    assert (ratio < 0.0101).all() and (ratio > 0.005).all()
