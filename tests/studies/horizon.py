"""How the variance of a policy gradient grows with the horizon, in closed form.

The worst case that keeps sequences alive: a first coin c decides which of two teachers the rest of the sequence meets, so
that the errors of all later tokens agree. Given c, the T tokens are independent and alike: score s (of a scalar parameter)
and reward r = log q_c - log p. The estimator is g = sum_t s_t sum_{u >= t} gamma^(u - t) r_u.

Three facts that ``tests/properties/test_t02_variance.py`` holds:
- gamma < 1: the variance grows like T^2, and that is the most it can do with |s|, |r| bounded;
- gamma = 1 on the policy's own samples: like T^3, and no more is possible either. Scores are martingale differences there,
  so |sum_t s_t| grows like sqrt(T); g = sum_u r_u S_u with S_u = s_1 + ... + s_u gives E g^2 <= R^2 G^2 T^2 (T + 1) / 2;
- gamma = 1 with scores that have a mean: like T^4, the bound of 2603.25562. That is what samples of an older policy give
  (several updates on a batch, a frozen sampler), because only the sampler's own scores average to zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CoinTokens:
    """Binary tokens. All probabilities are of token 1."""

    sampler: float
    """who sampled"""
    policy: float
    """whose gradient it is; the sampler itself on the policy's own samples"""
    teachers: tuple[float, float]
    """by coin"""

    def outcomes(self, coin: int) -> list[tuple[float, float, float]]:
        """(probability, score, reward) of each token; the parameter is the policy's logit, so the score is a - p."""
        teacher = self.teachers[coin]
        return [
            (self.sampler, 1.0 - self.policy, math.log(teacher / self.policy)),
            (1.0 - self.sampler, -self.policy, math.log((1.0 - teacher) / (1.0 - self.policy))),
        ]


def gradient_moments(outcomes: list[tuple[float, float, float]], horizon: int, gamma: float) -> tuple[float, float]:
    """(E g, E g^2) given the coin, exactly, by a backward recursion over A_t = r_t + gamma A_{t+1}, g_t = g_{t+1} + s_t A_t."""

    def mean(score: int, reward: int) -> float:
        return sum(p * s**score * r**reward for p, s, r in outcomes)

    a, aa, g, ga, gg = 0.0, 0.0, 0.0, 0.0, 0.0
    for _ in range(horizon):
        gg = (
            gg
            + 2.0 * (mean(1, 1) * g + gamma * mean(1, 0) * ga)
            + mean(2, 2) + 2.0 * gamma * mean(2, 1) * a + gamma**2 * mean(2, 0) * aa
        )  # fmt: skip
        ga = mean(0, 1) * g + gamma * ga + mean(1, 2) + 2.0 * gamma * mean(1, 1) * a + gamma**2 * mean(1, 0) * aa
        g = g + mean(1, 1) + gamma * mean(1, 0) * a
        aa = mean(0, 2) + 2.0 * gamma * mean(0, 1) * a + gamma**2 * aa
        a = mean(0, 1) + gamma * a
    return g, gg


def gradient_variance(tokens: CoinTokens, horizon: int, gamma: float) -> float:
    """Var g over the coin and the tokens."""
    moments = [gradient_moments(tokens.outcomes(coin), horizon, gamma) for coin in (0, 1)]
    mean = sum(first for first, _ in moments) / 2.0
    return sum(second for _, second in moments) / 2.0 - mean**2


def growth_exponent(tokens: CoinTokens, gamma: float, horizon: int) -> float:
    """log2 of variance(2 T) / variance(T)."""
    return math.log2(gradient_variance(tokens, 2 * horizon, gamma) / gradient_variance(tokens, horizon, gamma))


ON_POLICY = CoinTokens(sampler=0.5, policy=0.5, teachers=(0.5, 0.95))
STALE = CoinTokens(sampler=0.5, policy=0.7, teachers=(0.5, 0.95))
