"""T1: what token-level and sequence-level distillation are the gradients of, by enumeration (2603.25562, B.1)."""

from __future__ import annotations

import pytest
import torch

from cluster.spec.objectives import PolicyGradient, TokenAdvantage
from tests.properties.naive import TinyWorld, discounted, expected_gradient, rows, token_sums, values_of

TOLERANCE = {"atol": 1e-12, "rtol": 0}
SPEC = PolicyGradient(clip_low=None, clip_high=None, advantage=TokenAdvantage(outcome_weight=0.0, teacher_weight=1.0))


@pytest.fixture(params=[0, 1])
def world(request) -> TinyWorld:
    return TinyWorld(seed=request.param)


def _log_ratios(world: TinyWorld) -> torch.Tensor:
    """r_t = log q - log p of the sampled tokens, [N, T]"""
    return world.sampled(world.teacher) - world.sampled(world.policy(world.theta))


def _descent(world: TinyWorld, gamma: float) -> torch.Tensor:
    """E of the policy-gradient objective's gradient, with the project's own advantages."""
    advantages = token_sums(_log_ratios(world), gamma).flatten()
    ids = world.tokens.flatten()
    return expected_gradient(world, world.theta, lambda policy: values_of(SPEC, rows(policy, ids, advantages=advantages)))


def test_t1_token_level_is_the_gradient_of_per_position_kl_with_prefixes_frozen(world):
    at = world.theta.clone().requires_grad_()
    policy, teacher = (world.on_sequences(table) for table in (world.policy(at), world.teacher))
    per_position = (policy.exp() * (policy - teacher)).sum(-1)
    frozen = (world.probabilities(world.theta)[:, None] * per_position).sum()
    (expected,) = torch.autograd.grad(frozen, at)
    assert expected.norm() > 0.1
    torch.testing.assert_close(_descent(world, 0.0), expected, **TOLERANCE)


def test_t1_sequence_level_is_the_gradient_of_the_sequence_kl(world):
    at = world.theta.clone().requires_grad_()
    log_p, log_q = world.sampled(world.policy(at)).sum(1), world.sampled(world.teacher).sum(1)
    (expected,) = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), at)
    torch.testing.assert_close(_descent(world, 1.0), expected, **TOLERANCE)


def test_t1_the_difference_is_the_later_rewards_on_the_earlier_scores(world):
    rewards, scores, probabilities = _log_ratios(world), world.scores(world.theta), world.probabilities(world.theta)
    expected = torch.zeros_like(world.theta)
    for t in range(world.length):
        for later in range(t + 1, world.length):
            expected -= (probabilities[:, None] * rewards[:, later, None] * scores[:, t]).sum(0)
    assert expected.norm() > 0.1
    torch.testing.assert_close(_descent(world, 1.0) - _descent(world, 0.0), expected, **TOLERANCE)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 0.9])
def test_t1_gamma_weighs_each_distance_by_its_power(world, gamma):
    scores, probabilities = world.scores(world.theta), world.probabilities(world.theta)
    returns = discounted(_log_ratios(world), gamma)
    expected = -(probabilities[:, None, None] * returns[..., None] * scores).sum((0, 1))
    torch.testing.assert_close(_descent(world, gamma), expected, **TOLERANCE)


def test_t1_earlier_rewards_do_not_enter_a_tokens_expected_gradient(world):
    """The whole sequence's sum on every token has the same mean as the sum from the token on."""
    total = _log_ratios(world).sum(1, keepdim=True).expand(-1, world.length).flatten()
    ids = world.tokens.flatten()
    whole = expected_gradient(world, world.theta, lambda policy: values_of(SPEC, rows(policy, ids, advantages=total)))
    torch.testing.assert_close(whole, _descent(world, 1.0), **TOLERANCE)
