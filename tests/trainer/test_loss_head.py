"""The loss head against a naive full-matrix version: values, both gradients, metrics, chunks; in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cluster.messages import TrainingSample
from cluster.spec.composition import (
    Composition,
    CrossEntropy,
    DemonstrationExperience,
    EmaTeacher,
    ForwardKL,
    FullSupport,
    JensenShannon,
    PolicyGradient,
    ReverseKL,
    SampledSupport,
    Term,
    TopKSupport,
)
from trainer.modeling.loss_head import LossJob
from trainer.modeling.loss_rows import collate
from trainer.step_metrics import StepMetrics
from trainer.terms import stage_loss

VOCABULARY, HIDDEN, K = 13, 6, 4
TEMPERATURE = 0.7


def _term(name: str, objective, support, coefficient: float, **fields) -> Term:
    return Term(name=name, objective=objective, support=support, coefficient=coefficient, **fields)


ALL_TERMS = (
    _term("pg", PolicyGradient(clip_low=0.1, clip_high=0.1), SampledSupport(), 1.0, importance_cap=None),
    _term("pg_capped", PolicyGradient(), SampledSupport(), 0.5, importance_cap=1.1),
    _term("forward", ForwardKL(), FullSupport(), 0.3, importance_cap=None),
    _term("reverse", ReverseKL(), FullSupport(), 0.2, importance_cap=2.0),
    _term("jensen", JensenShannon(weight=0.4), TopKSupport(k=K), 0.7, importance_cap=0.9),
    _term("forward_top", ForwardKL(), TopKSupport(k=K), 0.1, importance_cap=None),
    _term("sampled", ReverseKL(), SampledSupport(), 0.6, importance_cap=None),
    _term("ce", CrossEntropy(), SampledSupport(), -0.05, importance_cap=None),
)
DENOMINATORS = {term.name: 10.0 + index for index, term in enumerate(ALL_TERMS)}


def _composition(terms=ALL_TERMS) -> Composition:
    return Composition(teacher=EmaTeacher() if any(term.needs_teacher for term in terms) else None, terms=terms)


def _samples(terms=ALL_TERMS, count: int = 4) -> list[TrainingSample]:
    """The second sample has no teacher; weights differ by term and have holes."""
    generator = np.random.default_rng(0)
    samples = []
    for index in range(count):
        tokens, taught = 3 + 2 * index, index != 1
        weights = {}
        for term in terms:
            if taught or not term.needs_teacher:
                weights[term.name] = generator.uniform(0.2, 1.0, tokens).astype(np.float32)
                weights[term.name][generator.integers(tokens)] = 0.0
        teacher_ids = np.stack([generator.permutation(VOCABULARY)[:K] for _ in range(tokens)]).astype(np.int32)
        samples.append(
            TrainingSample(
                sample_id=f"s{index}",
                prompt_token_ids=generator.integers(0, VOCABULARY, 2).astype(np.int32),
                completion_token_ids=generator.integers(0, VOCABULARY, tokens).astype(np.int32),
                rollout_logprobs=(-2.5 + 0.3 * generator.normal(size=tokens)).astype(np.float32),
                advantage=float(np.float32(generator.normal())),
                term_weights=weights,
                support_ids=teacher_ids if taught else None,
                teacher_logprobs=(-2.5 + 0.3 * generator.normal(size=tokens)).astype(np.float32) if taught else None,
                teacher_support_logprobs=np.log(generator.uniform(0.05, 0.2, (tokens, K))).astype(np.float32) if taught else None,
                teacher_hidden=generator.normal(size=(tokens, HIDDEN)).astype(np.float32) if taught else None,
            )
        )
    return samples


def _inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(rows, HIDDEN).requires_grad_(), normal(VOCABULARY, HIDDEN).requires_grad_(), normal(VOCABULARY, HIDDEN)


def _run(terms=ALL_TERMS, *, chunk: int | None = None, samples=None, composition=None):
    samples = samples or _samples(terms)
    loss = stage_loss(composition or _composition(terms), temperature=TEMPERATURE)
    _, rows = collate(samples, loss)
    hidden, head, teacher_head = _inputs(rows.count)
    metrics = StepMetrics(sums=loss.sum_names, means=loss.mean_names, maxima=loss.maximum_names)
    job = LossJob(
        loss=loss, rows=rows, denominators=DENOMINATORS, metrics=metrics, teacher_head=teacher_head, max_chunk_rows=chunk
    )
    total = job(hidden, head)
    (total * 3.0).backward()
    return total.detach(), hidden.grad / 3.0, head.grad / 3.0, metrics.reduce(), (samples, hidden, head, teacher_head)


def _naive(terms, samples, hidden, head, teacher_head):
    """One row, one term at a time, by the definitions; autograd does the rest."""
    hidden, head = hidden.detach().clone().requires_grad_(), head.detach().clone().requires_grad_()
    total, by_term, row = torch.zeros((), dtype=torch.float64), {term.name: 0.0 for term in terms}, 0
    for sample in samples:
        for token in range(len(sample.completion_token_ids)):
            weights = {name: float(values[token]) for name, values in sample.term_weights.items() if values[token] != 0}
            if not weights:
                continue
            logp = torch.log_softmax(head @ hidden[row] / TEMPERATURE, dim=0)
            own = logp[int(sample.completion_token_ids[token])]
            for term in terms:
                if term.name not in weights:
                    continue
                value = _naive_value(term, sample, token, logp, own, teacher_head)
                if term.importance_cap is not None:
                    value = value * min(math.exp(own.item() - float(sample.rollout_logprobs[token])), term.importance_cap)
                part = value * weights[term.name] / DENOMINATORS[term.name]
                by_term[term.name] += part.item()
                total = total + term.coefficient * part
            row += 1
    total.backward()
    return total.detach(), hidden.grad, head.grad, by_term


def _naive_value(term, sample, token, logp, own, teacher_head):
    kind = term.objective.kind
    if kind == "cross_entropy":
        return -own
    if kind == "policy_gradient":
        old = own.item() if term.importance_cap is not None else float(sample.rollout_logprobs[token])
        ratio = (own - old).exp()
        low, high = 1 - term.objective.clip_low, 1 + term.objective.clip_high
        return -torch.minimum(ratio * sample.advantage, ratio.clamp(low, high) * sample.advantage)
    if term.support.kind == "sampled":
        return (own.item() - float(sample.teacher_logprobs[token])) * own
    if term.support.kind == "full":
        p, q = logp.exp(), torch.softmax(teacher_head @ torch.from_numpy(sample.teacher_hidden[token]).double() / TEMPERATURE, 0)
    else:
        p = logp.exp()[torch.from_numpy(sample.support_ids[token]).long()]
        q = torch.from_numpy(sample.teacher_support_logprobs[token]).double().exp()
        p, q = torch.cat((p, 1 - p.sum()[None])), torch.cat((q, 1 - q.sum()[None]))
    if kind == "forward_kl":
        return (q * (q / p).log()).sum()
    if kind == "reverse_kl":
        return (p * (p / q).log()).sum()
    w = term.objective.weight
    m = (1 - w) * p + w * q
    return (1 - w) * (p * (p / m).log()).sum() + w * (q * (q / m).log()).sum()


def test_values_and_both_gradients_equal_the_naive_version():
    total, hidden_gradient, head_gradient, metrics, inputs = _run()
    expected = _naive(ALL_TERMS, *inputs)
    torch.testing.assert_close(total, expected[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(hidden_gradient, expected[1], atol=1e-10, rtol=0)
    torch.testing.assert_close(head_gradient, expected[2], atol=1e-10, rtol=0)
    for name, value in expected[3].items():
        assert metrics[f"loss/{name}"] == pytest.approx(value, abs=1e-10)
    assert metrics["loss/total"] == pytest.approx(total.item(), abs=1e-10)


@pytest.mark.parametrize("term", ALL_TERMS, ids=[term.name for term in ALL_TERMS])
def test_each_term_alone_equals_the_naive_version(term):
    total, hidden_gradient, head_gradient, _, inputs = _run((term,))
    expected = _naive((term,), *inputs)
    torch.testing.assert_close(total, expected[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(hidden_gradient, expected[1], atol=1e-10, rtol=0)
    torch.testing.assert_close(head_gradient, expected[2], atol=1e-10, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2, 5, 1000])
def test_chunk_size_changes_nothing(chunk):
    expected, got = _run(), _run(chunk=chunk)
    for left, right in zip(expected[:3], got[:3], strict=True):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=0)
    assert set(expected[3]) == set(got[3])
    for name, value in expected[3].items():
        assert got[3][name] == pytest.approx(value, abs=1e-12), name


def test_metrics_are_means_over_their_own_rows():
    *_, metrics, (samples, hidden, head, teacher_head) = _run()
    entropies, mismatches, kls, positive, masses, row = [], [], [], [], [], 0
    for sample in samples:
        for token in range(len(sample.completion_token_ids)):
            if not any(values[token] != 0 for values in sample.term_weights.values()):
                continue
            logp = torch.log_softmax(head.detach() @ hidden.detach()[row] / TEMPERATURE, 0)
            own = logp[int(sample.completion_token_ids[token])].item()
            entropies.append(-(logp.exp() * logp).sum().item())
            mismatches.append(abs(own - float(sample.rollout_logprobs[token])))
            if sample.teacher_hidden is not None:
                logq = torch.log_softmax(teacher_head @ torch.from_numpy(sample.teacher_hidden[token]).double() / TEMPERATURE, 0)
                kls.append((logp.exp() * (logp - logq)).sum().item())
                positive.append(float(sample.teacher_logprobs[token]) > own)
                masses.append(logp.exp()[torch.from_numpy(sample.support_ids[token]).long()].sum().item())
            row += 1
    assert metrics["policy/entropy_nats"] == pytest.approx(np.mean(entropies), abs=1e-10)
    assert metrics["policy/mismatch_nats_mean"] == pytest.approx(np.mean(mismatches), abs=1e-10)
    assert metrics["policy/mismatch_nats_max"] == pytest.approx(max(mismatches), abs=1e-10)
    assert metrics["teacher/kl_nats"] == pytest.approx(np.mean(kls), abs=1e-10)
    assert metrics["teacher/positive_share"] == pytest.approx(np.mean(positive), abs=1e-10)
    assert metrics["policy/support_mass"] == pytest.approx(np.mean(masses), abs=1e-10)
    assert 0.0 < metrics["jensen/importance_capped_share"] < 1.0


def test_a_term_without_denominator_contributes_nothing(monkeypatch):
    monkeypatch.setitem(DENOMINATORS, "pg", 0.0)
    total, hidden_gradient, *_ = _run(ALL_TERMS[:1])
    assert total.item() == 0.0 and hidden_gradient.abs().max().item() == 0.0


def test_demonstrations_have_neither_ratio_nor_mismatch():
    term = Term(name="ce", objective=CrossEntropy())
    assert term.importance_cap == 2.0
    composition = Composition(experience=DemonstrationExperience(), terms=(term,))
    samples = [sample for sample in _samples((ALL_TERMS[-1],)) if sample.teacher_hidden is not None]
    *_, metrics, _ = _run((ALL_TERMS[-1],), samples=samples, composition=composition)
    assert not [name for name in metrics if "mismatch" in name or "importance" in name]


def test_a_teacher_term_without_the_teachers_values_is_refused():
    samples = _samples((ALL_TERMS[2],), count=1)
    bare = TrainingSample(
        sample_id="bare",
        prompt_token_ids=samples[0].prompt_token_ids,
        completion_token_ids=samples[0].completion_token_ids,
        rollout_logprobs=samples[0].rollout_logprobs,
        advantage=0.0,
        term_weights=samples[0].term_weights,
        teacher_logprobs=samples[0].teacher_logprobs,
    )
    with pytest.raises(ValueError, match="teacher_hidden"):
        collate([bare], stage_loss(_composition((ALL_TERMS[2],)), temperature=1.0))
