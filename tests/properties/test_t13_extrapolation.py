"""T13: reward extrapolation (G-OPD, 2602.12125): A_t = lambda (log q - log ref) - (log p - log ref), and its mixed teacher."""

from __future__ import annotations

import pytest
import torch

from cluster.spec.composition import Term
from cluster.spec.objectives import PolicyGradient, ReverseKL
from cluster.spec.supports import FullSupport
from cluster.spec.teachers import AnchorSource, ExternalTeacher, MixTeacher
from services.teacher.strategies import parts_of
from tests.properties.head import teacher_fields, through_the_head
from tests.properties.naive import TinyWorld, expected_gradient, geometric, random_logits, rows, token_sums, values_of

TOLERANCE = {"atol": 1e-12, "rtol": 0}
SPEC = PolicyGradient(clip_low=None, clip_high=None)


def _descent(world: TinyWorld, rewards: torch.Tensor, gamma: float = 0.0) -> torch.Tensor:
    advantages, ids = token_sums(rewards, gamma).flatten(), world.tokens.flatten()
    return expected_gradient(world, world.theta, lambda policy: values_of(SPEC, rows(policy, ids, advantages=advantages)))


def _written_out(world: TinyWorld, weight: float, reference: torch.Tensor) -> torch.Tensor:
    """[N, T] lambda (log q - log ref) - (log p - log ref) of the sampled tokens"""
    p, q, ref = (world.sampled(table) for table in (world.policy(world.theta), world.teacher, reference))
    return weight * (q - ref) - (p - ref)


def _as_mixed_teacher(world: TinyWorld, weight: float, reference: torch.Tensor) -> torch.Tensor:
    """[N, T] log q' - log p with q' ~ ref^(1 - lambda) q^lambda, normalised at every position"""
    return world.sampled(geometric(reference, world.teacher, weight)) - world.sampled(world.policy(world.theta))


@pytest.fixture(params=[130, 131])
def world(request) -> TinyWorld:
    return TinyWorld(seed=request.param)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_t13_lambda_1_does_not_depend_on_the_reference(world, gamma):
    plain = world.sampled(world.teacher) - world.sampled(world.policy(world.theta))
    for reference in (world.reference, world.policy(world.theta), world.teacher):
        torch.testing.assert_close(_written_out(world, 1.0, reference), plain, **TOLERANCE)
        torch.testing.assert_close(
            _descent(world, _as_mixed_teacher(world, 1.0, reference), gamma), _descent(world, plain, gamma), **TOLERANCE
        )


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.25, 2.0])
def test_t13_with_gamma_0_the_mixed_teacher_has_the_same_expected_gradient(world, weight):
    """The normaliser is a constant of the position; a score times a constant of its position has mean zero."""
    written, mixed = (make(world, weight, world.reference) for make in (_written_out, _as_mixed_teacher))
    torch.testing.assert_close(_descent(world, mixed), _descent(world, written), **TOLERANCE)
    if weight not in (0.0, 1.0):
        assert (written - mixed).abs().max() > 0.01


@pytest.mark.parametrize("weight", [0.5, 1.25])
def test_t13_with_gamma_above_0_it_has_not(world, weight):
    """Later normalisers depend on the token at hand, so they no longer drop out."""
    written, mixed = (make(world, weight, world.reference) for make in (_written_out, _as_mixed_teacher))
    assert (_descent(world, mixed, 0.5) - _descent(world, written, 0.5)).abs().max() > 1e-3


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0, 1.25, 3.0])
def test_t13_the_optimum_is_the_geometric_policy(weight):
    """At p ~ ref^(1 - lambda) q^lambda the written-out advantages are a constant of the position and teach nothing; elsewhere not."""
    reference, teacher = random_logits(132).log_softmax(-1), random_logits(133).log_softmax(-1)
    optimum, first = geometric(reference, teacher, weight), torch.zeros(6, dtype=torch.int64)

    def descent(policy: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(policy)
        rewards = weight * (teacher - reference) - (policy - reference)
        for token in range(policy.shape[1]):
            term = Term(name="distillation", objective=PolicyGradient(clip_low=None, clip_high=None), importance_cap=None)
            _, gradient = through_the_head(term, policy, torch.full_like(first, token), advantages=rewards[:, token])
            total += policy[:, token, None].exp() * gradient
        return total

    assert descent(optimum).abs().max() < 1e-12
    assert descent(geometric(reference, teacher, weight + 0.2)).abs().max() > 1e-3
    full = Term(name="distillation", objective=ReverseKL(), support=FullSupport())
    policy = random_logits(134).log_softmax(-1)
    torch.testing.assert_close(
        descent(policy), through_the_head(full, policy, first, **teacher_fields(optimum, first, full=True))[1], **TOLERANCE
    )


def test_t13_the_mix_teacher_carries_lambda_as_the_exponent_of_its_second_source():
    spec = MixTeacher(first=AnchorSource(), second=ExternalTeacher(path="elsewhere"), weight=1.25)
    (first, low), (second, high) = parts_of(spec, "own")
    assert (first, low, high) == ("own", -0.25, 1.25) and "elsewhere" in second
