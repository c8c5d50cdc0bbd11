"""T11: how far a policy moved from the base beyond what its success needs (2607.01763, theorem 1), by enumeration.

S is the set of sequences that succeed, P0 the base, alpha = Q(S). The Razor policy alpha P0(. | S) + (1 - alpha) P0(. | not S)
is the nearest with that success; excess = KL(Q || P0) - kl(alpha || P0(S)) = KL(Q || Razor) >= 0. The KL-regularised optimum
and the natural gradient reach it; plain softmax policy gradient need not.
"""

from __future__ import annotations

import math

import pytest
import torch

from cluster.spec.objectives import PolicyGradient, RewardPenalty
from tests.properties.naive import TinyWorld, expected_gradient, gradient_at, rows, values_of
from trainer.advantages import reference_penalty

TOLERANCE = {"atol": 1e-12, "rtol": 0}
SPEC = PolicyGradient(clip_low=None, clip_high=None)


def _binary(alpha: float, base: float) -> float:
    return alpha * math.log(alpha / base) + (1 - alpha) * math.log((1 - alpha) / (1 - base))


def _razor(base: torch.Tensor, succeeds: torch.Tensor, alpha: float) -> torch.Tensor:
    mass = base[succeeds].sum()
    return torch.where(succeeds, alpha * base / mass, (1 - alpha) * base / (1 - mass))


def _kl(q: torch.Tensor, p: torch.Tensor) -> float:
    return (q * (q / p).log()).sum().item()


def _excess(q: torch.Tensor, base: torch.Tensor, succeeds: torch.Tensor) -> float:
    return _kl(q, base) - _binary(q[succeeds].sum().item(), base[succeeds].sum().item())


@pytest.mark.parametrize("seed", range(5))
def test_t11_kl_to_the_base_splits_into_the_success_and_the_excess(seed):
    generator = torch.Generator().manual_seed(seed)
    base, q = (torch.randn(27, generator=generator, dtype=torch.float64).softmax(0) for _ in range(2))
    succeeds = torch.rand(27, generator=generator) < 0.4
    alpha = q[succeeds].sum().item()
    razor = _razor(base, succeeds, alpha)
    assert _excess(q, base, succeeds) == pytest.approx(_kl(q, razor), abs=1e-12) and _kl(q, razor) > 0.05
    assert _kl(razor, base) == pytest.approx(_binary(alpha, base[succeeds].sum().item()), abs=1e-12)
    assert _excess(razor, base, succeeds) == pytest.approx(0.0, abs=1e-12)


class _Tabular(TinyWorld):
    """Every prefix has logits of its own: theta is the table, flattened."""

    def policy(self, theta: torch.Tensor) -> torch.Tensor:
        return theta.reshape(len(self.prefixes), self.vocabulary).log_softmax(-1)

    def table_of(self, sequences: torch.Tensor) -> torch.Tensor:
        """theta of a distribution [N] over whole sequences"""
        table = torch.empty(len(self.prefixes), self.vocabulary, dtype=torch.float64)
        for row, prefix in enumerate(self.prefixes):
            for token in range(self.vocabulary):
                begins = (self.tokens[:, : len(prefix) + 1] == torch.tensor([*prefix, token])).all(1)
                table[row, token] = sequences[begins].sum().log()
        return table.flatten()


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_t11_the_regularised_optimum_is_the_razor_policy(beta):
    """Score minus the project's k1 penalty in the reward: its policy gradient is zero there, and there alone of the three."""
    world = _Tabular(seed=2)
    base_table = world.reference
    base = world.sampled(base_table).sum(1).exp()
    succeeds = world.tokens.sum(1) % 2 == 0
    spec, mass = RewardPenalty(coefficient=beta, estimator="k1"), base[succeeds].sum().item()
    alpha = 1 / (1 + (1 - mass) / mass * math.exp(-1 / beta))

    def ascent(sequences: torch.Tensor) -> torch.Tensor:
        theta = world.table_of(sequences)
        log_p, log_base = world.sampled(world.policy(theta)), world.sampled(base_table)
        scores = [
            float(passed) + reference_penalty(p.numpy(), q.numpy(), spec)
            for passed, p, q in zip(succeeds, log_p, log_base, strict=True)
        ]
        advantages = torch.tensor(scores, dtype=torch.float64)[:, None].expand(-1, world.length).flatten()
        ids = world.tokens.flatten()
        return expected_gradient(world, theta, lambda policy: values_of(SPEC, rows(policy, ids, advantages=advantages)))

    optimum = _razor(base, succeeds, alpha)
    torch.testing.assert_close(world.probabilities(world.table_of(optimum)), optimum, **TOLERANCE)
    assert ascent(optimum).abs().max() < 1e-12
    assert ascent(base).abs().max() > 1e-3 and ascent(_razor(base, succeeds, 0.5 * alpha)).abs().max() > 1e-3
    assert _excess(optimum, base, succeeds) == pytest.approx(0.0, abs=1e-12)


def _climb(natural: bool, alpha: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(Q, P0, S) after policy-gradient ascent on the success of one choice out of six, from an uneven base to Q(S) = alpha."""
    base = torch.tensor([0.3, 0.1, 0.02, 0.28, 0.2, 0.1], dtype=torch.float64)
    succeeds = torch.tensor([True, True, True, False, False, False])
    logits, ids = base.log()[None], torch.arange(6)
    while (p := logits.softmax(-1)[0])[succeeds].sum() < alpha:
        advantages = succeeds.double() - p[succeeds].sum()

        def expected(policy: torch.Tensor, p=p, advantages=advantages) -> torch.Tensor:
            return (p * values_of(SPEC, rows(policy.expand(6, -1), ids, advantages=advantages))).sum()

        descent = gradient_at(logits, expected)
        # the Fisher matrix of a softmax is diag(p) - p p'; on a gradient that sums to 0 dividing by p inverts it
        logits = logits - 0.5 * (descent / p if natural else descent)
    return logits.softmax(-1)[0], base, succeeds


def test_t11_natural_gradient_keeps_the_conditionals_and_plain_softmax_gradient_does_not():
    natural, plain = _climb(True, 0.96), _climb(False, 0.96)
    assert _excess(*natural) == pytest.approx(0.0, abs=1e-10)
    assert _excess(*plain) > 0.05
    # the likelier a success was, the more of the gradient it gets
    assert plain[0][0] / plain[0][1] > 1.2 * plain[1][0] / plain[1][1]


def test_t11_projection_onto_a_teacher_pays_for_the_teachers_conditionals():
    """A teacher of the same success with other conditionals: being equal to it costs KL(teacher || Razor)."""
    _, base, succeeds = _climb(True, 0.5)
    teacher = torch.tensor([0.1, 0.1, 0.76, 0.02, 0.01, 0.01], dtype=torch.float64)
    assert _excess(teacher, base, succeeds) == pytest.approx(_kl(teacher, _razor(base, succeeds, 0.96)), abs=1e-12)
    assert _excess(teacher, base, succeeds) > 1.0
