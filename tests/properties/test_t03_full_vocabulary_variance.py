"""T3, per position: the full-vocabulary estimator has the sampled one's mean and no larger variance. Not over a sequence."""

from __future__ import annotations

import math

import torch

from cluster.spec.objectives import ReverseKL
from tests.properties.naive import TinyWorld, gradient_at, rows, values_of

TOLERANCE = {"atol": 1e-12, "rtol": 0}


def _per_token(logits: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logit gradients of reverse KL: full [R, V], and sampled for each token that may be drawn [V, R, V]."""
    spec, count = ReverseKL(), logits.shape[0]
    first = torch.zeros(count, dtype=torch.int64)
    full = gradient_at(logits, lambda policy: values_of(spec, rows(policy, first, teacher=teacher, support=True)))
    sampled = [
        gradient_at(
            logits, lambda policy, token=token: values_of(spec, rows(policy, torch.full_like(first, token), teacher=teacher))
        )
        for token in range(logits.shape[1])
    ]
    return full, torch.stack(sampled)


def test_t3_the_means_agree_at_every_prefix():
    world = TinyWorld(vocabulary=4, length=3, seed=3)
    logits = world.policy(world.theta)
    full, sampled = _per_token(logits, world.teacher)
    torch.testing.assert_close((logits.exp().T[..., None] * sampled).sum(0), full, **TOLERANCE)


def test_t3_at_a_position_the_full_covariance_is_smaller_over_random_prefixes():
    """Cov(sampled) - Cov(full) = E Cov(sampled given the prefix), positive semi-definite at every position."""
    world = TinyWorld(vocabulary=4, length=3, seed=4)
    logits = world.policy(world.theta)
    full, sampled = _per_token(logits, world.teacher)
    probabilities = world.probabilities(world.theta)
    for position in range(world.length):
        prefixes, tokens = world.prefix_of[:, position], world.tokens[:, position]
        covariances = []
        for drawn in (sampled[tokens, prefixes], full[prefixes]):
            mean = (probabilities[:, None] * drawn).sum(0)
            covariances.append((probabilities[:, None] * (drawn - mean)).T @ (drawn - mean))
        lowest = torch.linalg.eigvalsh(covariances[0] - covariances[1]).min()
        assert lowest > -1e-12 and covariances[0].trace() > 1.2 * covariances[1].trace()


def test_t3_over_a_sequence_with_shared_parameters_the_order_can_turn_round():
    """A counterexample in closed form: sampled gradients cancel between two positions, full-vocabulary ones cannot.

    Two binary tokens, one shared parameter. At the second position the teacher is such that r_v s_v is the same for both
    tokens, so sampling adds no noise there; its size depends on the first token and undoes that token's own noise.
    """
    p, first_teacher = torch.tensor([0.4, 0.6], dtype=torch.float64), torch.tensor([0.2, 0.8], dtype=torch.float64)
    scores = torch.tensor([[-0.6], [0.4]], dtype=torch.float64)[:, 0]  # of token 0 and 1 under a logit of token 1
    at_first = (first_teacher / p).log() * scores
    constant = _root(lambda c: 0.6 * math.exp(c / 0.4) + 0.4 * math.exp(-c / 0.6) - 1.0)
    second_teacher = torch.tensor([0.4 * math.exp(-constant / 0.6), 0.6 * math.exp(constant / 0.4)], dtype=torch.float64)
    size = -(at_first - at_first[0]) / constant + 1.0  # of the second position's feature, by the first token
    total = second_teacher.sum().item()
    assert abs(total - 1.0) < 1e-12 and abs(constant) > 0.05

    logits = p.log().expand(2, 2)
    full, sampled = _per_token(logits, torch.stack((first_teacher, second_teacher)).log())
    # a parameter that is the first position's logit of token 1, and the second's times the feature
    sampled_sum = torch.stack([sampled[a, 0, 1] + size[a] * sampled[b, 1, 1] for a in (0, 1) for b in (0, 1)])
    full_sum = torch.stack([full[0, 1] + size[a] * full[1, 1] for a in (0, 1) for _ in (0, 1)])
    weights = torch.stack([p[a] * p[b] for a in (0, 1) for b in (0, 1)])
    means = [(weights * drawn).sum() for drawn in (sampled_sum, full_sum)]
    torch.testing.assert_close(means[0], means[1], **TOLERANCE)
    variances = [(weights * (drawn - mean) ** 2).sum().item() for drawn, mean in zip((sampled_sum, full_sum), means, strict=True)]
    assert variances[0] < 1e-20 and variances[1] > 0.01


def _root(function) -> float:
    """The root away from zero of a convex function with function(0) = 0 and a positive slope there."""
    low, high = -5.0, -1e-3
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return low
