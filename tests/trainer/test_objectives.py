"""Objectives against closed forms, naive loops and autograd, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from cluster.spec.objectives import CrossEntropy, EntropyBonus, ForwardKL, JensenShannon, PolicyGradient, ReferenceKL, ReverseKL
from trainer.objectives import OBJECTIVES, RowInputs, objective_metrics
from trainer.objectives.supports import with_tail_bucket

ROWS, VOCABULARY = 7, 11
SPECS = {
    "policy_gradient": PolicyGradient(clip_low=0.2, clip_high=0.3),
    "forward_kl": ForwardKL(),
    "reverse_kl": ReverseKL(),
    "jensen_shannon": JensenShannon(weight=0.3),
    "cross_entropy": CrossEntropy(),
    "reference_kl": ReferenceKL(estimator="k3"),
    "entropy_bonus": EntropyBonus(),
}
DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")


def _logits(seed: int, scale: float = 1.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64) * scale


def _rows(policy: torch.Tensor, teacher: torch.Tensor, *, support: str = "full", k: int = 4, **changes) -> RowInputs:
    """policy, teacher: log-probabilities [R, V]; the sampled token of row r is r."""
    ids = torch.arange(ROWS)
    policy_support, teacher_support = policy, teacher
    if support == "top_k":
        top = policy.detach().topk(k, dim=-1).indices
        policy_support, teacher_support = (with_tail_bucket(values.gather(1, top)) for values in (policy, teacher))
    sampled = policy.gather(1, ids[:, None])[:, 0]
    fields = {
        "policy_logprobs": sampled,
        "policy_entropies": -(policy.exp() * policy).sum(-1),
        "reference_logprobs": teacher.gather(1, ids[:, None])[:, 0],
        "policy_support_logprobs": None if support == "sampled" else policy_support,
        "teacher_support_logprobs": None if support == "sampled" else teacher_support,
        "rollout_logprobs": sampled.detach(),
        "teacher_logprobs": teacher.gather(1, ids[:, None])[:, 0],
        "advantages": torch.linspace(-1.0, 1.0, ROWS, dtype=torch.float64),
        "token_weights": torch.ones(ROWS, dtype=torch.float64),
    }
    return RowInputs(**(fields | changes))


def _gradient(kind: str, logits: torch.Tensor, teacher: torch.Tensor, spec=None, **how):
    logits = logits.clone().requires_grad_()
    values = OBJECTIVES[kind](_rows(logits.log_softmax(-1), teacher, **how), spec or SPECS[kind]).values
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    return values.detach(), gradient


def _naive_kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def test_full_divergences_equal_naive_loops():
    policy, teacher = _logits(0).log_softmax(-1), _logits(1).log_softmax(-1)
    for row in range(ROWS):
        p, q = policy[row].exp().tolist(), teacher[row].exp().tolist()
        m = [0.7 * a + 0.3 * b for a, b in zip(p, q, strict=True)]
        expected = {
            "forward_kl": _naive_kl(q, p),
            "reverse_kl": _naive_kl(p, q),
            "jensen_shannon": 0.7 * _naive_kl(p, m) + 0.3 * _naive_kl(q, m),
        }
        for kind, value in expected.items():
            assert OBJECTIVES[kind](_rows(policy, teacher), SPECS[kind]).values[row].item() == pytest.approx(value, abs=1e-12)


def test_full_gradients_have_their_closed_forms():
    logits, teacher = _logits(2), _logits(3).log_softmax(-1)
    logp = logits.log_softmax(-1)
    p, q = logp.exp(), teacher.exp()
    m = 0.7 * p + 0.3 * q
    kl = (p * (logp - teacher)).sum(-1, keepdim=True)
    kl_m = (p * (logp - m.log())).sum(-1, keepdim=True)
    closed = {
        "forward_kl": p - q,
        "reverse_kl": p * (logp - teacher - kl),
        "jensen_shannon": 0.7 * p * (logp - m.log() - kl_m),
    }
    for kind, expected in closed.items():
        torch.testing.assert_close(_gradient(kind, logits, teacher)[1], expected, atol=1e-12, rtol=0)


def test_top_k_gradients_have_a_dense_part_that_is_a_scalar_times_p():
    logits, teacher = _logits(4), _logits(5).log_softmax(-1)
    p, q, k = logits.softmax(-1), teacher.exp(), 4
    top = p.topk(k, dim=-1).indices
    on = torch.zeros_like(p, dtype=torch.bool).scatter_(1, top, True)
    p_tail, q_tail = (1 - (values * on).sum(-1, keepdim=True) for values in (p, q))
    slopes = {
        "forward_kl": (-q / p, -q_tail / p_tail),
        "reverse_kl": ((p / q).log() + 1, (p_tail / q_tail).log() + 1),
    }
    for kind, (slope, tail_slope) in slopes.items():
        mean = (p * slope * on).sum(-1, keepdim=True) + p_tail * tail_slope
        expected = (tail_slope - mean) * p + p * (slope - tail_slope) * on
        torch.testing.assert_close(_gradient(kind, logits, teacher, support="top_k", k=k)[1], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
@pytest.mark.parametrize("support", ["sampled", "top_k", "full"])
def test_every_gradient_agrees_with_finite_differences(kind, support):
    if support == "sampled" and kind in DIVERGENCES:
        return  # the score-function estimator's value is not what its gradient is of; T4 holds it
    logits, teacher = _logits(6), _logits(7).log_softmax(-1)
    top_k_ids = logits.log_softmax(-1).topk(4, dim=-1).indices

    def value(at: torch.Tensor) -> torch.Tensor:
        policy = at.log_softmax(-1)
        rows = _rows(policy, teacher, support="sampled", rollout_logprobs=logits.log_softmax(-1).diagonal() + 0.05)
        if support != "sampled":
            pairs = (policy, teacher)
            if support == "top_k":
                pairs = tuple(with_tail_bucket(values.gather(1, top_k_ids)) for values in pairs)
            rows = _rows(policy, teacher, policy_support_logprobs=pairs[0], teacher_support_logprobs=pairs[1], rollout_logprobs=rows.rollout_logprobs)
        return OBJECTIVES[kind](rows, SPECS[kind]).values

    assert torch.autograd.gradcheck(value, logits.clone().requires_grad_(), atol=1e-7)


def test_t4_sampled_reverse_kl_is_a_policy_gradient_with_advantage_log_teacher_over_policy():
    """Its expected gradient under the policy equals the gradient of the full reverse KL."""
    logits, teacher = _logits(8), _logits(9).log_softmax(-1)
    expected = _gradient("reverse_kl", logits, teacher)[1]
    probabilities = logits.softmax(-1)
    total = torch.zeros_like(logits)
    for token in range(VOCABULARY):
        at = logits.clone().requires_grad_()
        rows = _rows(at.log_softmax(-1), teacher, support="sampled")
        ids = torch.full((ROWS, 1), token)
        rows = _rows(
            at.log_softmax(-1),
            teacher,
            support="sampled",
            policy_logprobs=at.log_softmax(-1).gather(1, ids)[:, 0],
            teacher_logprobs=teacher.gather(1, ids)[:, 0],
        )
        (gradient,) = torch.autograd.grad(OBJECTIVES["reverse_kl"](rows, SPECS["reverse_kl"]).values.sum(), at)
        total += probabilities[:, token, None] * gradient
    torch.testing.assert_close(total, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize("support", ["sampled", "top_k", "full"])
def test_t5_teacher_equal_to_policy_gives_zero(kind, support):
    if support == "sampled" and kind != "reverse_kl":
        return  # the estimator of the forward KL is zero in expectation alone
    logits = _logits(10)
    values, gradient = _gradient(kind, logits, logits.log_softmax(-1), support=support)
    assert values.abs().max() < 1e-14
    assert gradient.abs().max() < 1e-14


def test_t6_jensen_shannon_is_bounded_and_tends_to_the_two_kls():
    policy, teacher = _logits(11, 4.0).log_softmax(-1), _logits(12, 4.0).log_softmax(-1)
    rows = _rows(policy, teacher)
    half = OBJECTIVES["jensen_shannon"](rows, JensenShannon(weight=0.5)).values
    assert (half >= 0).all() and (half <= math.log(2)).all() and half.max() > 0.3
    tiny = 1e-7
    rows = _rows(_logits(11).log_softmax(-1), _logits(12).log_softmax(-1))
    forward, reverse = (OBJECTIVES[kind](rows, SPECS[kind]).values for kind in ("forward_kl", "reverse_kl"))
    near_zero = OBJECTIVES["jensen_shannon"](rows, JensenShannon(weight=tiny)).values / tiny
    near_one = OBJECTIVES["jensen_shannon"](rows, JensenShannon(weight=1 - tiny)).values / tiny
    torch.testing.assert_close(near_zero, forward, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(near_one, reverse, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_t7_top_k_with_tail_never_exceeds_the_full_divergence_and_meets_it_at_v(kind):
    policy, teacher = _logits(13).log_softmax(-1), _logits(14).log_softmax(-1)
    full = OBJECTIVES[kind](_rows(policy, teacher), SPECS[kind]).values
    previous = torch.zeros(ROWS, dtype=torch.float64)
    for k in range(1, VOCABULARY + 1):
        coarse = OBJECTIVES[kind](_rows(policy, teacher, support="top_k", k=k), SPECS[kind]).values
        assert (coarse <= full + 1e-6).all() and (coarse >= previous - 1e-6).all()
        previous = coarse
    torch.testing.assert_close(previous, full, atol=1e-6, rtol=0)


def test_t7_ids_outside_the_support_share_the_tails_factor():
    logits, teacher = _logits(15), _logits(16).log_softmax(-1)
    gradient = _gradient("forward_kl", logits, teacher, support="top_k", k=3)[1]
    outside = torch.ones_like(logits, dtype=torch.bool).scatter_(1, logits.topk(3, dim=-1).indices, False)
    factor = gradient / logits.softmax(-1)
    for row in range(ROWS):
        own = factor[row][outside[row]]
        torch.testing.assert_close(own, own[:1].expand_as(own), atol=1e-12, rtol=0)


def test_tail_bucket_completes_a_distribution_and_stays_finite():
    support = torch.tensor([[0.5, 0.3], [0.6, 0.4]], dtype=torch.float64).log()
    completed = with_tail_bucket(support)
    assert completed[0].exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    assert completed[0, 2].exp().item() == pytest.approx(0.2, abs=1e-12)
    assert completed[1, 2].exp().item() == pytest.approx(1e-7, rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "dual_clip", "value", "slope", "low", "high"),
    [
        (1.0, 2.0, None, -2.0, -2.0, 0.2, 0.3),  # on-policy: value -A, gradient -A, never zero
        (1.0, -2.0, None, 2.0, 2.0, 0.2, 0.3),
        (1.4, 1.0, None, -1.3, 0.0, 0.2, 0.3),  # above 1 + clip_high with A > 0: held
        (1.4, -1.0, None, 1.4, 1.4, 0.2, 0.3),  # the same ratio with A < 0 is pushed back
        (0.5, -1.0, None, 0.8, 0.0, 0.2, 0.3),  # below 1 - clip_low with A < 0: held
        (0.5, 1.0, None, -0.5, -0.5, 0.2, 0.3),
        (5.0, -1.0, 3.0, 3.0, 0.0, 0.2, 0.3),  # dual clip
        (2.0, -1.0, 3.0, 2.0, 2.0, 0.2, 0.3),
        (1.4, 1.0, None, -1.4, -1.4, 0.2, None),  # no upper bound
        (0.5, -1.0, None, 0.5, 0.5, None, 0.3),  # no lower bound
        (1.4, 1.0, None, -1.3, 0.0, None, 0.3),
        (0.01, -1.0, None, 0.01, 0.01, None, None),  # r A, whatever r
        (50.0, 1.0, None, -50.0, -50.0, None, None),
    ],
)
def test_policy_gradient_clips_as_ppo_does(ratio, advantage, dual_clip, value, slope, low, high):
    policy = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
    rows = RowInputs(
        policy_logprobs=policy,
        rollout_logprobs=policy.detach() - math.log(ratio),
        advantages=torch.tensor([advantage], dtype=torch.float64),
        token_weights=torch.ones(1),
    )
    spec = PolicyGradient(clip_low=low, clip_high=high, dual_clip=dual_clip)
    outcome = OBJECTIVES["policy_gradient"](rows, spec)
    (gradient,) = torch.autograd.grad(outcome.values.sum(), policy)
    assert outcome.values.item() == pytest.approx(value, abs=1e-12)
    assert gradient.item() == pytest.approx(slope, abs=1e-12)
    assert outcome.metrics["clipped_share"].item() == (slope == 0.0)


def test_policy_gradient_prefers_old_logprobs_over_rollout_logprobs():
    policy = torch.tensor([-1.0], dtype=torch.float64)
    rows = RowInputs(
        policy_logprobs=policy,
        rollout_logprobs=policy - 3.0,
        old_logprobs=policy - math.log(1.1),
        advantages=torch.ones(1, dtype=torch.float64),
        token_weights=torch.ones(1),
    )
    assert OBJECTIVES["policy_gradient"](rows, SPECS["policy_gradient"]).values.item() == pytest.approx(-1.1, abs=1e-12)


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_extreme_rows_stay_finite(kind):
    """Peaked distributions that disagree entirely, and a rollout 1000 nats away (clamped before exp)."""
    logits = torch.full((ROWS, VOCABULARY), -300.0)
    logits[:, 0] = 300.0
    teacher = logits.flip(-1).log_softmax(-1)
    for support in ("sampled", "full", "top_k"):
        if support == "sampled" and kind == "jensen_shannon":
            continue
        at = logits.clone().requires_grad_()
        rows = _rows(at.log_softmax(-1), teacher, support=support, rollout_logprobs=torch.full((ROWS,), -1000.0), advantages=torch.ones(ROWS))
        values = OBJECTIVES[kind](rows, SPECS[kind]).values
        (gradient,) = torch.autograd.grad(values.sum(), at)
        assert torch.isfinite(values).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_metric_names_are_those_announced_and_rows_are_kept_apart(kind):
    policy, teacher = _logits(17).log_softmax(-1), _logits(18).log_softmax(-1)
    outcome = OBJECTIVES[kind](_rows(policy, teacher), SPECS[kind])
    assert outcome.values.shape == (ROWS,)
    assert set(outcome.metrics) == set(objective_metrics(SPECS[kind]))
    changed = policy.clone()
    changed[3:] = _logits(19).log_softmax(-1)[3:]
    torch.testing.assert_close(OBJECTIVES[kind](_rows(changed, teacher), SPECS[kind]).values[:3], outcome.values[:3], atol=0, rtol=0)
