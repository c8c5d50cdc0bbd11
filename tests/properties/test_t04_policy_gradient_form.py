"""T4: the gradient of self-distillation is a policy gradient whose advantage is log q / p (SDPO, 2601.20802, prop. 2.1)."""

from __future__ import annotations

import pytest
import torch

from cluster.spec.objectives import PolicyGradient, ReverseKL, TokenAdvantage
from tests.properties.naive import TinyWorld, expected_gradient, rows, values_of
from trainer.advantages import token_advantages

TOLERANCE = {"atol": 1e-12, "rtol": 0}
POLICY_GRADIENT = PolicyGradient(clip_low=None, clip_high=None, advantage=TokenAdvantage(outcome_weight=0.0, teacher_weight=1.0))


@pytest.fixture(params=[5, 6])
def world(request) -> TinyWorld:
    return TinyWorld(seed=request.param)


def _full(world: TinyWorld) -> torch.Tensor:
    """Gradient of the full-vocabulary reverse KL at every position of every sequence."""
    ids, teacher = world.tokens.flatten(), world.on_sequences(world.teacher).flatten(0, 1)
    return expected_gradient(
        world, world.theta, lambda policy: values_of(ReverseKL(), rows(policy, ids, teacher=teacher, support=True))
    )


def test_t4_over_every_entry_of_the_vocabulary(world):
    """E over y of sum_t E over v ~ p of -(log q_v - log p_v) grad log p_v, each v as if it had been sampled there."""
    teacher = world.on_sequences(world.teacher).flatten(0, 1)

    def as_policy_gradient(policy: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(policy), dtype=torch.float64)
        for token in range(world.vocabulary):
            ids = torch.full((len(policy),), token)
            inputs = rows(policy, ids, advantages=(teacher - policy)[:, token].detach())
            total = total + policy[:, token].detach().exp() * values_of(POLICY_GRADIENT, inputs)
        return total

    expected = _full(world)
    assert expected.norm() > 0.1
    torch.testing.assert_close(expected_gradient(world, world.theta, as_policy_gradient), expected, **TOLERANCE)


def test_t4_on_sampled_tokens_with_the_projects_advantages(world):
    """The advantages are kept in float32 for the learner, so 1e-6 is what they can give."""
    log_p, log_q = world.sampled(world.policy(world.theta)), world.sampled(world.teacher)
    advantages = torch.stack(
        [
            torch.from_numpy(
                token_advantages(
                    0.0,
                    POLICY_GRADIENT.advantage,
                    num_tokens=world.length,
                    rollout_logprobs=p.numpy(),
                    teacher_logprobs=q.numpy(),
                ).values
            )
            for p, q in zip(log_p, log_q, strict=True)
        ]
    ).double()
    ids = world.tokens.flatten()
    gradient = expected_gradient(
        world, world.theta, lambda policy: values_of(POLICY_GRADIENT, rows(policy, ids, advantages=advantages.flatten()))
    )
    torch.testing.assert_close(gradient, _full(world), atol=1e-6, rtol=0)


def test_t4_the_sampled_reverse_kl_is_the_same_policy_gradient_token_by_token(world):
    ids, teacher = world.tokens.flatten(), world.on_sequences(world.teacher).flatten(0, 1)
    at = world.on_sequences(world.policy(world.theta)).flatten(0, 1).clone().requires_grad_()
    log_ratio = (teacher - at).gather(1, ids[:, None])[:, 0].detach()
    gradients = [
        torch.autograd.grad(values.sum(), at)[0]
        for values in (
            values_of(ReverseKL(), rows(at, ids, teacher=teacher)),
            values_of(POLICY_GRADIENT, rows(at, ids, advantages=log_ratio)),
        )
    ]
    torch.testing.assert_close(*gradients, **TOLERANCE)
