"""Clips, tails, estimators and sampled-token objectives: what the papers' variants must hold, by enumeration in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cluster.spec.objectives import EntropyBonus, ForwardKL, JensenShannon, ReferenceKL, ReverseKL
from trainer.objectives import OBJECTIVES, RowInputs, objective_metrics
from trainer.objectives.full_vocabulary import FullRows, full_divergence
from trainer.objectives.kl_estimators import KL_ESTIMATORS
from trainer.objectives.supports import complete_support, present_columns

ROWS, VOCABULARY, K = 6, 11, 4
DIVERGENCES = {"forward_kl": ForwardKL, "reverse_kl": ReverseKL, "jensen_shannon": JensenShannon}
CLIPS = ({}, {"entry_clip": 0.05}, {"token_clip": 0.3}, {"log_ratio_clip": 0.8}, {"entry_clip": 0.05, "token_clip": 0.12, "log_ratio_clip": 0.8})


def _logits(seed: int) -> torch.Tensor:
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.2


def _rows(policy: torch.Tensor, teacher: torch.Tensor, token: int, **fields) -> RowInputs:
    """[R, V] log-probabilities of both; every row sampled ``token``."""
    return RowInputs(
        policy_logprobs=policy[:, token],
        teacher_logprobs=teacher[:, token],
        reference_logprobs=teacher[:, token],
        rollout_logprobs=policy[:, token].detach(),
        token_weights=torch.ones(ROWS),
        **fields,
    )


def _expected(kind: str, spec, logits: torch.Tensor, teacher: torch.Tensor, **of_token) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and gradient of a sampled-token objective, averaged over every token with the policy's probability."""
    probabilities = logits.softmax(-1)
    value, gradient = torch.zeros(ROWS, dtype=torch.float64), torch.zeros_like(logits)
    for token in range(VOCABULARY):
        at = logits.clone().requires_grad_()
        rows = _rows(at.log_softmax(-1), teacher, token, **{name: make(at.log_softmax(-1), token) for name, make in of_token.items()})
        values = OBJECTIVES[kind](rows, spec).values
        value += probabilities[:, token] * values.detach()
        gradient += probabilities[:, token, None] * torch.autograd.grad(values.sum(), at)[0]
    return value, gradient


def _kl_gradient(logits: torch.Tensor, other: torch.Tensor, *, of_policy: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(policy || other) or KL(other || policy) of each row and its gradient, by autograd on the definition."""
    at = logits.clone().requires_grad_()
    policy = at.log_softmax(-1)
    values = (policy.exp() * (policy - other)).sum(-1) if of_policy else (other.exp() * (other - policy)).sum(-1)
    return values.detach(), torch.autograd.grad(values.sum(), at)[0]


# -- sampled tokens --------------------------------------------------------------------------------------------------


def test_sampled_forward_kl_has_the_gradient_of_the_forward_kl():
    logits, teacher = _logits(0), _logits(1).log_softmax(-1)
    gradient = _expected("forward_kl", ForwardKL(), logits, teacher)[1]
    torch.testing.assert_close(gradient, _kl_gradient(logits, teacher, of_policy=False)[1], atol=1e-12, rtol=0)


def test_far_from_its_reference_a_token_is_still_pulled_back():
    """Where log p - log ref is past what the exponential can hold, k3's line keeps its value and its slope of 1."""
    policy = torch.tensor([-0.1], dtype=torch.float64, requires_grad=True)
    value = KL_ESTIMATORS["k3"](policy, torch.tensor([-30.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(value.sum(), policy)
    assert abs(value.item() - (29.9 - 1 + math.exp(-29.9))) < 1e-8 and abs(gradient.item() - 1.0) < 1e-8


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_reference_kl_has_the_value_and_gradient_that_its_estimator_is_known_for(estimator):
    logits, reference = _logits(2), _logits(3).log_softmax(-1)
    spec = ReferenceKL.model_construct(estimator=estimator)
    value, gradient = _expected("reference_kl", spec, logits, reference)
    kl, reverse = _kl_gradient(logits, reference, of_policy=True)
    wanted = {"k1": torch.zeros_like(logits), "k2": reverse, "k3": _kl_gradient(logits, reference, of_policy=False)[1]}
    torch.testing.assert_close(gradient, wanted[estimator], atol=1e-12, rtol=0)
    if estimator != "k2":
        torch.testing.assert_close(value, kl, atol=1e-12, rtol=0)


def test_estimators_take_numpy_and_torch_alike():
    policy, reference = np.array([-1.0, -2.0, -3.0]), np.array([-1.5, -2.0, -2.0])
    wanted = {"k1": [0.5, 0.0, -1.0], "k2": [0.125, 0.0, 0.5], "k3": [math.exp(-0.5) - 1 + 0.5, 0.0, math.e - 2]}
    for name, values in wanted.items():
        np.testing.assert_allclose(KL_ESTIMATORS[name](policy, reference), values, atol=1e-12)
        got = KL_ESTIMATORS[name](torch.from_numpy(policy), torch.from_numpy(reference))
        np.testing.assert_allclose(got.numpy(), values, atol=1e-12)
    assert np.isfinite(KL_ESTIMATORS["k3"](np.float32(-1000.0), np.float32(0.0)))


def test_entropy_bonus_has_the_gradient_of_minus_the_entropy():
    logits = _logits(4)
    at = logits.clone().requires_grad_()
    policy = at.log_softmax(-1)
    rows = _rows(policy, policy.detach(), 0, policy_entropies=-(policy.exp() * policy).sum(-1))
    (gradient,) = torch.autograd.grad(OBJECTIVES["entropy_bonus"](rows, EntropyBonus()).values.sum(), at)
    p, logp = logits.softmax(-1), logits.log_softmax(-1)
    torch.testing.assert_close(gradient, p * (logp - (p * logp).sum(-1, keepdim=True)), atol=1e-12, rtol=0)


# -- tails -----------------------------------------------------------------------------------------------------------


def _support_fields(teacher: torch.Tensor, ids: torch.Tensor, tail: str):
    return {
        "policy_support_logprobs": lambda policy, token: complete_support(policy.gather(1, ids), tail),
        "teacher_support_logprobs": lambda policy, token: complete_support(teacher.gather(1, ids), tail),
    }


def test_the_sampled_correction_is_the_full_reverse_kl_in_value_and_gradient():
    logits, teacher = _logits(5), _logits(6).log_softmax(-1)
    ids = _logits(7).topk(K, dim=-1).indices
    outside = {"sampled_outside": lambda policy, token: (ids != token).all(-1)}
    value, gradient = _expected("reverse_kl", ReverseKL(), logits, teacher, **_support_fields(teacher, ids, "sampled_correction"), **outside)
    expected = _kl_gradient(logits, teacher, of_policy=True)
    torch.testing.assert_close(value, expected[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, expected[1], atol=1e-12, rtol=0)
    without = _expected("reverse_kl", ReverseKL(), logits, teacher, **_support_fields(teacher, ids, "drop"))
    assert (without[0] - expected[0]).abs().max() > 0.05


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_renormalised_supports_leave_every_other_id_alone_and_are_stationary_at_the_teacher(kind):
    ids = _logits(8).topk(K, dim=-1).indices
    teacher = _logits(9).log_softmax(-1)
    for logits, is_teacher in ((_logits(10), False), (teacher.clone(), True)):
        at = logits.requires_grad_()
        on = [complete_support(values.gather(1, ids), "renormalise") for values in (at.log_softmax(-1), teacher)]
        torch.testing.assert_close(on[1].exp().sum(-1), torch.ones(ROWS, dtype=torch.float64))
        rows = _rows(at.log_softmax(-1), teacher, 0, policy_support_logprobs=on[0], teacher_support_logprobs=on[1])
        values = OBJECTIVES[kind](rows, DIVERGENCES[kind]()).values
        (gradient,) = torch.autograd.grad(values.sum(), at)
        others = torch.ones_like(gradient, dtype=torch.bool).scatter_(1, ids, False)
        assert gradient[others].abs().max() < 1e-15
        assert (gradient.abs().max() < 1e-14) == is_teacher and (values.abs().max() < 1e-14) == is_teacher


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "drop"])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_joined_token_that_is_there_already_counts_once(kind, tail):
    """The duplicate column changes neither value nor gradient; an id that is new counts like any other."""
    logits, teacher = _logits(11), _logits(12).log_softmax(-1)
    ids = _logits(13).topk(K, dim=-1).indices
    for joined, plain in ((torch.cat((ids, ids[:, 1:2]), 1), ids), (torch.cat((ids, _new(ids)), 1), torch.cat((_new(ids), ids), 1))):
        outcomes = []
        for columns, join in ((joined, True), (plain, False)):
            at = logits.clone().requires_grad_()
            present = present_columns(columns, join_sampled=join)
            on = [complete_support(values.gather(1, columns), tail, present) for values in (at.log_softmax(-1), teacher)]
            rows = _rows(at.log_softmax(-1), teacher, 0, policy_support_logprobs=on[0], teacher_support_logprobs=on[1])
            values = OBJECTIVES[kind](rows, DIVERGENCES[kind](log_ratio_clip=1.0)).values
            outcomes.append((values.detach(), torch.autograd.grad(values.sum(), at)[0]))
        for got, wanted in zip(*outcomes, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-14, rtol=0)


def _new(ids: torch.Tensor) -> torch.Tensor:
    """[R, 1]: the smallest id that is not in the row."""
    return torch.tensor([[min(set(range(VOCABULARY)) - set(row))] for row in ids.tolist()])


# -- clips -----------------------------------------------------------------------------------------------------------


def test_an_entry_clip_holds_each_summand_before_the_sum():
    policy = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64).log()
    rows = RowInputs(
        policy_logprobs=policy[:, 0], policy_support_logprobs=policy, teacher_support_logprobs=teacher,
        rollout_logprobs=policy[:, 0], token_weights=torch.ones(1),
    )  # fmt: skip
    outcome = OBJECTIVES["reverse_kl"](rows, ReverseKL(entry_clip=0.5))
    assert outcome.values.item() == pytest.approx(0.5 + 0.1 * math.log(1 / 7), abs=1e-12)  # 0.7 log 7 = 1.36 is held, negative is not
    assert outcome.metrics["clipped_share"].tolist() == [True]
    outcome = OBJECTIVES["reverse_kl"](rows, ReverseKL(log_ratio_clip=1.0))
    assert outcome.values.item() == pytest.approx(0.7 - 0.1, abs=1e-12)
    outcome = OBJECTIVES["forward_kl"](rows, ForwardKL(token_clip=0.25))
    assert outcome.values.item() == pytest.approx(0.25, abs=1e-12)
    assert OBJECTIVES["forward_kl"](rows, ForwardKL(token_clip=9.0)).metrics["clipped_share"].tolist() == [False]
    assert OBJECTIVES["forward_kl"](rows, ForwardKL()).metrics == {}


@pytest.mark.parametrize("clips", CLIPS, ids=lambda clips: "-".join(clips) or "none")
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_closed_forms_over_the_vocabulary_are_what_autograd_finds(kind, clips):
    """``full_divergence`` against the objective of the same name: values, gradient, which rows were held."""
    spec = DIVERGENCES[kind](**clips)
    teacher = _logits(15).log_softmax(-1)
    at = _logits(14).requires_grad_()
    policy = at.log_softmax(-1)
    rows = _rows(policy, teacher, 0, policy_support_logprobs=policy, teacher_support_logprobs=teacher)
    outcome = OBJECTIVES[kind](rows, spec)
    (expected,) = torch.autograd.grad(outcome.values.sum(), at)
    policy = policy.detach()
    p, buffers = policy.exp(), {}
    entries = p * (policy - teacher)
    full = FullRows(policy=policy, probabilities=p, teacher=teacher, reverse_entries=entries, reverse=entries.sum(-1))
    closed = full_divergence(full, spec, lambda name: buffers.setdefault(name, torch.full_like(p, torch.nan)))
    gradient = closed.slopes - p * closed.slope_sums[:, None]
    if closed.free is not None:
        gradient = gradient * closed.free[:, None]
    torch.testing.assert_close(closed.values, outcome.values.detach(), atol=1e-14, rtol=0)
    torch.testing.assert_close(gradient, expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(full.reverse_entries, p * (policy - teacher), atol=0, rtol=0)
    assert objective_metrics(spec) == (("clipped_share",) if clips else ())
    if clips:
        assert closed.held.tolist() == outcome.metrics["clipped_share"].tolist() and closed.held.any()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_clipped_gradients_agree_with_finite_differences(kind):
    teacher = _logits(16).log_softmax(-1)
    spec = DIVERGENCES[kind](entry_clip=0.05, log_ratio_clip=0.8)

    def value(at: torch.Tensor) -> torch.Tensor:
        policy = at.log_softmax(-1)
        return OBJECTIVES[kind](_rows(policy, teacher, 0, policy_support_logprobs=policy, teacher_support_logprobs=teacher), spec).values

    assert torch.autograd.gradcheck(value, _logits(17).requires_grad_(), atol=1e-7)
