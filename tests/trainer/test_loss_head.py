"""The loss head against a naive full-matrix version: values, both gradients, metrics, chunks; in float64."""

from __future__ import annotations

from dataclasses import replace

import naive_loss
import numpy as np
import pytest
import torch

from cluster.messages import TrainingSample
from cluster.spec.composition import Composition, Term
from cluster.spec.experience import DemonstrationExperience
from cluster.spec.objectives import (
    CrossEntropy,
    EntropyBonus,
    ForwardKL,
    JensenShannon,
    PolicyGradient,
    ReferenceKL,
    ReverseKL,
)
from cluster.spec.supports import FullSupport, SampledSupport, TopKSupport
from cluster.spec.teachers import EmaTeacher
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
    _term("pg_sequence", PolicyGradient(clip_low=None, clip_high=None), SampledSupport(), 0.4, importance_level="sequence_mean"),
    _term("forward", ForwardKL(), FullSupport(), 0.3, importance_cap=None),
    _term("reverse", ReverseKL(), FullSupport(), 0.2, importance_cap=2.0),
    _term("jensen", JensenShannon(weight=0.4), TopKSupport(k=K), 0.7, importance_cap=0.9),
    _term("forward_top", ForwardKL(), TopKSupport(k=K), 0.1, importance_cap=None),
    _term("sampled", ReverseKL(), SampledSupport(), 0.6, importance_cap=None),
    _term("ce", CrossEntropy(), SampledSupport(), 0.05, importance_cap=None),
)
"""One stage's; every other term is tried alone or in the small stages below."""
OTHER_TERMS = (
    _term("pg_unbounded", PolicyGradient(clip_low=None, clip_high=0.05), SampledSupport(), 1.0, importance_cap=None),
    _term("pg_dual", PolicyGradient(dual_clip=1.1), SampledSupport(), 1.0, importance_cap=None),
    _term("jensen_full", JensenShannon(weight=0.3), FullSupport(), 0.5, importance_level="sequence_mean"),
    _term("forward_clipped", ForwardKL(entry_clip=0.1, log_ratio_clip=1.5), FullSupport(), 0.5, importance_cap=None),
    _term("reverse_clipped", ReverseKL(entry_clip=0.1, log_ratio_clip=1.5), FullSupport(), 0.5, importance_cap=None),
    _term("jensen_clipped", JensenShannon(weight=0.3, entry_clip=0.02, log_ratio_clip=1.5), FullSupport(), 0.5, importance_cap=None),
    _term("forward_entry", ForwardKL(entry_clip=0.1), FullSupport(), 0.5, importance_cap=None),
    _term("reverse_entry", ReverseKL(entry_clip=0.1), FullSupport(), 0.5, importance_cap=None),
    _term("jensen_entry", JensenShannon(entry_clip=0.02), FullSupport(), 0.5, importance_cap=None),
    _term("reverse_ratio", ReverseKL(log_ratio_clip=1.5), FullSupport(), 0.5, importance_cap=None),
    _term("reverse_token", ReverseKL(token_clip=6.0), FullSupport(), 0.5, importance_cap=1.5),
    _term("top_clipped", ReverseKL(entry_clip=0.1, log_ratio_clip=0.7, token_clip=0.1), TopKSupport(k=K), 0.5, importance_cap=None),
    _term("renormalised", ReverseKL(), TopKSupport(k=K, tail="renormalise"), 0.5, importance_cap=None),
    _term("dropped", ForwardKL(), TopKSupport(k=K, tail="drop"), 0.5, importance_cap=None),
    _term("corrected", ReverseKL(), TopKSupport(k=K, tail="sampled_correction"), 0.5, importance_cap=1.5),
    _term("joined", JensenShannon(), TopKSupport(k=K, join_sampled=True), 0.5, importance_cap=None),
    _term("joined_renormalised", ReverseKL(), TopKSupport(k=K, join_sampled=True, tail="renormalise"), 0.5, importance_cap=None),
    _term("own", ReverseKL(), TopKSupport(k=K, support_from="policy"), 0.5, importance_cap=None),
    _term("own_joined", JensenShannon(), TopKSupport(k=K, support_from="policy", join_sampled=True, tail="renormalise"), 0.5),
    _term("own_corrected", ReverseKL(), TopKSupport(k=K, support_from="policy", tail="sampled_correction"), 0.5, importance_cap=None),
    _term("sampled_forward", ForwardKL(log_ratio_clip=0.4), SampledSupport(), 0.5, importance_cap=None),
    _term("sampled_reverse", ReverseKL(log_ratio_clip=0.4), SampledSupport(), 0.5),
    _term("k2", ReferenceKL(estimator="k2"), SampledSupport(), 0.5, importance_cap=None),
    _term("k3", ReferenceKL(estimator="k3"), SampledSupport(), 0.5),
    _term("entropy", EntropyBonus(), SampledSupport(), 0.3),
)
BY_NAME = {term.name: term for term in (*ALL_TERMS, *OTHER_TERMS)}
DENOMINATORS = {term.name: 10.0 + index for index, term in enumerate(BY_NAME.values())}
PAYLOADS = ("hidden", "logprobs", "wide")
"""How the whole teacher comes: states as wide as the policy's, log-probabilities, states of two models side by side."""


def _composition(terms=ALL_TERMS) -> Composition:
    return Composition(teacher=EmaTeacher() if any(term.needs_teacher for term in terms) else None, terms=terms)


def _samples(terms=ALL_TERMS, count: int = 4, *, old: bool = False, payload: str = "hidden") -> list[TrainingSample]:
    """The second sample has no teacher; weights differ by term and have holes; every third sampled token is in its support."""
    generator = np.random.default_rng(0)
    join = any(term.support.kind == "top_k" and term.support.join_sampled for term in terms)
    samples = []
    for index in range(count):
        tokens, taught = 3 + 2 * index, index != 1
        weights, advantages = {}, {}
        for term in terms:
            if taught or not term.needs_teacher:
                weights[term.name] = generator.uniform(0.2, 1.0, tokens).astype(np.float32)
                weights[term.name][generator.integers(tokens)] = 0.0
                if term.objective.kind == "policy_gradient":
                    advantages[term.name] = generator.normal(size=tokens).astype(np.float32)
        completion = generator.integers(0, VOCABULARY, tokens).astype(np.int32)
        ids = np.stack([_support(generator, token, first=position % 3 == 0) for position, token in enumerate(completion)])
        ids = np.concatenate((ids, completion[:, None]), axis=1) if join else ids
        teacher = np.log(generator.dirichlet(np.ones(VOCABULARY), tokens)).astype(np.float32)
        width = HIDDEN * (2 if payload == "wide" else 1)
        samples.append(
            TrainingSample(
                sample_id=f"s{index}",
                prompt_token_ids=generator.integers(0, VOCABULARY, 2).astype(np.int32),
                completion_token_ids=completion,
                rollout_logprobs=(-2.5 + 0.3 * generator.normal(size=tokens)).astype(np.float32),
                term_weights=weights,
                term_advantages=advantages,
                old_logprobs=(-2.5 + 0.2 * generator.normal(size=tokens)).astype(np.float32) if old and index != 2 else None,
                reference_logprobs=(-2.5 + 0.5 * generator.normal(size=tokens)).astype(np.float32),
                support_ids=ids if taught else None,
                teacher_logprobs=np.take_along_axis(teacher, completion[:, None], 1)[:, 0] if taught else None,
                teacher_support_logprobs=np.take_along_axis(teacher, ids, 1) if taught else None,
                teacher_hidden=generator.normal(size=(tokens, width)).astype(np.float32) if taught and payload != "logprobs" else None,
                teacher_full_logprobs=teacher if taught and payload == "logprobs" else None,
            )
        )
    return samples


def _support(generator, token: int, *, first: bool) -> np.ndarray:
    """K ids, the token among them if ``first``."""
    others = [vocabulary_id for vocabulary_id in generator.permutation(VOCABULARY) if vocabulary_id != token][:K]
    return np.array([*others[:1], token, *others[1 : K - 1]] if first else others, dtype=np.int32)


def _inputs(rows: int, teacher_width: int = HIDDEN) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return normal(rows, HIDDEN).requires_grad_(), normal(VOCABULARY, HIDDEN).requires_grad_(), normal(VOCABULARY, teacher_width)


def _run(terms=ALL_TERMS, *, chunk: int | None = None, samples=None, composition=None, truncated=False, old=False, payload="hidden"):
    samples = samples or _samples(terms, old=old, payload=payload)
    loss = stage_loss(composition or _composition(terms), temperature=TEMPERATURE, truncated_sampling=truncated)
    _, rows = collate(samples, loss)
    hidden, head, teacher_head = _inputs(rows.count, HIDDEN * (2 if payload == "wide" else 1))
    metrics = StepMetrics(sums=loss.sum_names, means=loss.mean_names, maxima=loss.maximum_names)
    job = LossJob(
        loss=loss, rows=rows, denominators=DENOMINATORS, metrics=metrics, teacher_head=teacher_head, max_chunk_rows=chunk
    )
    total = job(hidden, head)
    (total * 3.0).backward()
    return total.detach(), hidden.grad / 3.0, head.grad / 3.0, metrics.reduce(), (samples, hidden, head, teacher_head)


def _hold_to_naive(terms, outcome) -> None:
    """Value, both gradients and every term's part to 1e-10 in float64."""
    total, hidden_gradient, head_gradient, metrics, inputs = outcome
    expected = naive_loss.by_rows(terms, *inputs, temperature=TEMPERATURE, denominators=DENOMINATORS)
    for got, wanted in zip((total, hidden_gradient, head_gradient), expected[:3], strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)
    assert hidden_gradient.abs().max() > 1e-6
    for name, value in expected[3].items():
        assert metrics[f"loss/{name}"] == pytest.approx(value, abs=1e-10)
    assert metrics["loss/total"] == pytest.approx(total.item(), abs=1e-10)


def test_values_and_both_gradients_equal_the_naive_version():
    _hold_to_naive(ALL_TERMS, _run())


@pytest.mark.parametrize("term", (*ALL_TERMS, *OTHER_TERMS), ids=lambda term: term.name)
@pytest.mark.parametrize("old", [False, True], ids=["now", "old"])
def test_each_term_alone_equals_the_naive_version(term, old):
    """``old``: the policy before the first update is known, except of one sample."""
    outcome = _run((term,), old=old, chunk=4)
    _hold_to_naive((term,), outcome)
    if term.objective.kind != "policy_gradient" and f"{term.name}/clipped_share" in outcome[3]:
        assert 0.0 < outcome[3][f"{term.name}/clipped_share"] <= 1.0


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("names", [("reverse", "jensen_full"), ("own", "forward"), ("own", "reverse"), ("entropy", "reverse", "corrected", "k3", "pg")], ids="-".join)
def test_every_payload_of_the_teacher_equals_the_naive_version(payload, names):
    terms = tuple(term for term in (*ALL_TERMS, *OTHER_TERMS) if term.name in names)
    _hold_to_naive(terms, _run(terms, payload=payload, chunk=5))


@pytest.mark.parametrize("chunk", [1, 2, 5, 1000])
@pytest.mark.parametrize("names", [None, ("own_joined", "jensen_full", "pg_sequence", "entropy")], ids=["all", "policy-support"])
def test_chunk_size_changes_nothing(names, chunk):
    terms = ALL_TERMS if names is None else tuple(BY_NAME[name] for name in names)
    expected, got = _run(terms), _run(terms, chunk=chunk)
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
    samples = _samples((BY_NAME["forward"],), count=1)
    bare = TrainingSample(
        sample_id="bare",
        prompt_token_ids=samples[0].prompt_token_ids,
        completion_token_ids=samples[0].completion_token_ids,
        rollout_logprobs=samples[0].rollout_logprobs,
        term_weights=samples[0].term_weights,
        teacher_logprobs=samples[0].teacher_logprobs,
    )
    with pytest.raises(ValueError, match="teacher_hidden"):
        collate([bare], stage_loss(_composition((BY_NAME["forward"],)), temperature=1.0))


def test_truncated_rollouts_are_compared_with_the_policy_alone():
    """No mismatch, no importance, and a ratio of 1 against the policy itself: the recorded log-probabilities are not read."""
    terms = (BY_NAME["pg"], BY_NAME["own"])
    expected = _run(terms, truncated=True)
    shifted = [_changed(sample, rollout_logprobs=sample.rollout_logprobs - 1.0) for sample in _samples(terms)]
    got = _run(terms, truncated=True, samples=shifted)
    for left, right in zip(expected[:3], got[:3], strict=True):
        torch.testing.assert_close(left, right, atol=0, rtol=0)
    assert not [name for name in got[3] if "mismatch" in name or "importance" in name or "to_rollout" in name]
    assert got[3]["pg/clipped_share"] == 0.0
    assert _run(terms, samples=shifted)[3]["pg/clipped_share"] > 0.0
    old = _run((BY_NAME["pg"],), truncated=True, old=True)
    assert old[3]["pg/clipped_share"] > 0.0


def test_positions_masses_and_overlap_of_the_teacher():
    """Two sequences of 40 tokens, whose first 20 rows carry nothing in one of them."""
    terms = (BY_NAME["joined"],)
    samples = [_long(_samples(terms, count=1)[0], 40, seed) for seed in range(2)]
    samples[1].term_weights["joined"][:20] = 0.0
    *_, metrics, (_, hidden, head, _) = _run(terms, samples=samples)
    logp = torch.log_softmax(head.detach() @ hidden.detach().T / TEMPERATURE, 0).T
    at = [(index, token) for index, sample in enumerate(samples) for token in np.flatnonzero(sample.term_weights["joined"])]
    gaps, masses, overlaps = {0: [], 16: []}, [], []
    for row, (index, token) in enumerate(at):
        sample, own = samples[index], logp[row]
        target, ids = int(sample.completion_token_ids[token]), sample.support_ids[token].tolist()
        gaps[0 if token < 16 else 16].append(own[target].item() - float(sample.teacher_logprobs[token]))
        masses.append(own.exp()[list(set(ids))].sum().item())
        if (token + target) % 8 == 0:
            overlaps.append(len(set(own.topk(K).indices.tolist()) & set(ids[:K])) / K)
    assert len(at) == 60
    for start, values in gaps.items():
        assert metrics[f"teacher/gap_nats/at_{start}"] == pytest.approx(np.mean(values), abs=1e-10)
    assert "teacher/gap_nats/at_64" not in metrics
    assert metrics["policy/support_mass"] == pytest.approx(np.mean(masses), abs=1e-10)
    assert metrics["teacher/support_overlap"] == pytest.approx(np.mean(overlaps), abs=1e-10)
    assert metrics["teacher/sampled_kl_nats"] == pytest.approx(np.mean(gaps[0] + gaps[16]), abs=1e-10)


def test_overlap_of_the_policys_own_support_is_with_the_teachers():
    *_, metrics, (samples, hidden, head, teacher_head) = _run((BY_NAME["own"],))
    shares, row = [], 0
    for sample in samples:
        for token in np.flatnonzero(sample.term_weights.get("own", np.zeros(0))):
            if (token + int(sample.completion_token_ids[token])) % 8 == 0:
                own = (head.detach() @ hidden.detach()[row]).topk(K).indices.tolist()
                other = (teacher_head @ torch.from_numpy(sample.teacher_hidden[token]).double()).topk(K).indices.tolist()
                shares.append(len(set(own) & set(other)) / K)
            row += 1
    assert shares and metrics["teacher/support_overlap"] == pytest.approx(np.mean(shares), abs=1e-12)


def test_every_metric_name_is_announced():
    for terms in (ALL_TERMS, *((term,) for term in OTHER_TERMS)):
        loss = stage_loss(_composition(terms), temperature=1.0)
        names = (*loss.sum_names, *loss.mean_names, *loss.maximum_names)
        assert len(set(names)) == len(names)
        assert set(_run(terms)[3]) <= set(names)


def test_gradients_are_handed_out_once():
    loss = stage_loss(_composition(ALL_TERMS[:1]), temperature=1.0)
    _, rows = collate(_samples(ALL_TERMS[:1]), loss)
    hidden, head, _ = _inputs(rows.count)
    metrics = StepMetrics(sums=loss.sum_names, means=loss.mean_names, maxima=loss.maximum_names)
    total = LossJob(loss=loss, rows=rows, denominators=DENOMINATORS, metrics=metrics)(hidden, head)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward can run once"):
        total.backward()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("pg", {"term_advantages": {}}, "term_advantages"),
        ("k3", {"reference_logprobs": None}, "reference_logprobs"),
        ("jensen", {"support_ids": np.zeros((3, K + 1), np.int32)}, r"support_ids has 5 columns, the stage's top-K support has 4"),
        ("own", {"teacher_hidden": None}, "teacher_hidden/teacher_full_logprobs"),
        ("sampled", {"teacher_logprobs": None}, "teacher_logprobs"),
    ],
)
def test_a_sample_without_what_its_term_reads_is_refused(name, changes, message):
    terms = (BY_NAME[name],)
    with pytest.raises(ValueError, match=message):
        collate([_changed(_samples(terms, count=1)[0], **changes)], stage_loss(_composition(terms), temperature=1.0))


def test_two_payloads_in_one_micro_batch_are_refused():
    terms = (BY_NAME["forward"],)
    samples = [_samples(terms, count=1)[0], _samples(terms, count=1, payload="logprobs")[0]]
    with pytest.raises(ValueError, match="one payload of the whole teacher"):
        collate(samples, stage_loss(_composition(terms), temperature=1.0))


def test_half_precision_multiplies_wide_on_a_cpu_and_stays_near():
    """bfloat16 states and head: the same loss as of the same rounded numbers in float64, up to the gradient's own rounding."""
    terms = tuple(BY_NAME[name] for name in ("forward", "reverse", "pg_sequence", "jensen_full"))
    loss = stage_loss(_composition(terms), temperature=TEMPERATURE)
    _, rows = collate(_samples(terms), loss)
    results = []
    for dtype in (torch.bfloat16, torch.float64):
        hidden, head, teacher_head = (values.detach().bfloat16().to(dtype).requires_grad_() for values in _inputs(rows.count))
        metrics = StepMetrics(sums=loss.sum_names, means=loss.mean_names, maxima=loss.maximum_names)
        states = replace(rows, teacher_hidden=rows.teacher_hidden.bfloat16().float())
        job = LossJob(loss=loss, rows=states, denominators=DENOMINATORS, metrics=metrics, teacher_head=teacher_head.detach())
        total = job(hidden, head)
        total.backward()
        results.append((total.double().detach(), hidden.grad.double(), head.grad.double()))
    assert results[0][0].item() == pytest.approx(results[1][0].item(), abs=1e-5)
    for got, wanted in zip(results[0][1:], results[1][1:], strict=True):
        assert (got - wanted).norm() < 2**-7 * wanted.norm()


def _changed(sample: TrainingSample, **changes) -> TrainingSample:
    return replace(sample, **changes)


def _long(sample: TrainingSample, tokens: int, seed: int) -> TrainingSample:
    """The same kind of sample with ``tokens`` tokens, a weight on each."""
    generator = np.random.default_rng(seed)
    completion = generator.integers(0, VOCABULARY, tokens).astype(np.int32)
    ids = np.stack([[*_support(generator, token, first=position % 3 == 0), token] for position, token in enumerate(completion)])
    teacher = np.log(generator.dirichlet(np.ones(VOCABULARY), tokens)).astype(np.float32)
    return replace(
        sample,
        completion_token_ids=completion,
        rollout_logprobs=np.full(tokens, -2.5, np.float32),
        reference_logprobs=None,
        term_weights={name: np.ones(tokens, np.float32) for name in sample.term_weights},
        support_ids=ids.astype(np.int32),
        teacher_logprobs=np.take_along_axis(teacher, completion[:, None], 1)[:, 0],
        teacher_support_logprobs=np.take_along_axis(teacher, ids, 1),
        teacher_hidden=None,
    )
