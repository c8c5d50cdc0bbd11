"""One learner rank: gradients do not depend on packing, bad steps change nothing, log-probabilities are the model's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_policy import (
    COMPOSITION,
    OPTIMIZER,
    TEMPERATURE,
    VOCABULARY,
    make_learner,
    make_samples,
    save_tiny_model,
    teacher_head,
    term_counts,
)
from transformers import AutoModelForCausalLM

from cluster.messages import BatchShard
from cluster.spec.composition import Composition, Term
from cluster.spec.experience import DemonstrationExperience
from cluster.spec.objectives import CrossEntropy
from trainer.balancing import distribute
from trainer.learner import Learner


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def learner(tmp_path, request):
    built = make_learner(save_tiny_model(tmp_path / "model", tied=request.param))
    built.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True)
    built.keep_gradient = True
    yield built
    built.close()


def _shard(samples, *, budget: int = 64) -> BatchShard:
    (micro_batches,) = distribute(samples, num_ranks=1, micro_batch_tokens=budget)
    return BatchShard(micro_batches=micro_batches, term_counts=term_counts(samples), teacher_head=teacher_head())


def _weights(learner) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.named_full_parameters()}


def _gradient_of(learner, shard) -> tuple[dict[str, torch.Tensor], object]:
    before = _weights(learner)
    report = learner.step(shard)
    with torch.no_grad():
        learner._take_weights(iter(before.items()), where="test")
    return learner.last_gradient, report


def test_gradient_does_not_depend_on_budget_order_or_empty_micro_batches(learner):
    samples = make_samples(12)
    expected, report = _gradient_of(learner, _shard(samples, budget=10_000))
    assert report.applied and report.gradient_norm > 0.01
    whole = _shard(samples, budget=1)
    assert len(whole.micro_batches) == 12
    variants = {
        "one by one": whole,
        "budget 40": _shard(samples, budget=40),
        "reversed": replace(whole, micro_batches=(tuple(samples[::-1]),)),
        "padded": replace(whole, micro_batches=((), tuple(samples[:5]), (), tuple(samples[5:]))),
    }
    for name, shard in variants.items():
        gradient, other = _gradient_of(learner, shard)
        assert other.loss == pytest.approx(report.loss, abs=1e-6), name
        assert other.gradient_norm == pytest.approx(report.gradient_norm, rel=1e-5), name
        for key, value in expected.items():
            torch.testing.assert_close(gradient[key], value, atol=1e-5 * float(value.abs().max()) + 1e-7, rtol=0, msg=f"{name} {key}")


def test_dead_samples_cost_nothing_and_change_nothing(learner):
    """Samples with zero advantage and no teacher give the gradient of the batch without them."""
    samples = make_samples(9)
    dead = [
        replace(
            sample,
            sample_id="dead",
            term_weights={"pg": sample.term_weights["pg"]},
            term_advantages={"pg": np.zeros_like(sample.rollout_logprobs)},
        )
        for sample in samples[:3]
    ]
    expected, report = _gradient_of(learner, _shard(samples))
    shard = _shard([*samples, *dead])
    gradient, with_dead = _gradient_of(learner, replace(shard, term_counts=term_counts(samples)))
    assert with_dead.gradient_norm == pytest.approx(report.gradient_norm, rel=1e-5)
    for key, value in expected.items():
        torch.testing.assert_close(gradient[key], value, atol=1e-5 * float(value.abs().max()) + 1e-7, rtol=0, msg=key)


def test_report_norms_are_those_of_the_gradient(learner):
    gradient, report = _gradient_of(learner, _shard(make_samples(6)))
    squares = {name: float(value.double().pow(2).sum()) for name, value in gradient.items()}
    assert report.metrics["gradient/norm"] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-6)
    digests = {name.removeprefix("gradient/norm_of/"): value for name, value in report.metrics.items() if "norm_of" in name}
    assert len(digests) == 3
    for name, value in digests.items():
        assert value == pytest.approx(squares[name] ** 0.5, rel=1e-6)
    for name in ("loss/pg", "loss/jsd", "policy/entropy_nats", "teacher/kl_nats", "teacher/positive_share", "seconds/optimizer"):
        assert name in report.metrics
    total = sum(term.coefficient * report.metrics[f"loss/{term.name}"] for term in COMPOSITION.terms)
    assert report.loss == pytest.approx(total, rel=1e-5)


def test_truncated_sampling_leaves_nothing_to_compare_with(learner):
    """Rollouts drawn with top_p or top_k: their record is renormalised in the nucleus, and no weight may come of it."""
    expected = learner.step(_shard(make_samples(6))).metrics
    learner.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True, truncated_sampling=True)
    metrics = learner.step(_shard(make_samples(6))).metrics
    gone = {"policy/mismatch_nats_mean", "policy/mismatch_nats_max", "pg/importance_mean", "top/importance_mean"}
    assert gone <= set(expected) and gone.isdisjoint(metrics)
    far = [replace(sample, rollout_logprobs=sample.rollout_logprobs - 5.0) for sample in make_samples(6)]
    one, two = (_gradient_of(learner, _shard(samples))[0] for samples in (make_samples(6), far))
    for name, value in one.items():
        assert torch.equal(two[name], value), name


def test_the_update_is_adamw_on_the_clipped_gradient_with_warm_up(learner):
    before = _weights(learner)
    report = learner.step(_shard(make_samples(6)))
    gradient = learner.last_gradient
    assert report.metrics["optimizer/learning_rate"] == pytest.approx(OPTIMIZER.lr / OPTIMIZER.warmup_steps)
    scale = min(1.0, OPTIMIZER.gradient_clip / (report.gradient_norm + 1e-6))
    assert scale < 1.0
    rate = OPTIMIZER.lr / OPTIMIZER.warmup_steps
    for name, value in _weights(learner).items():
        if name not in gradient:
            continue
        clipped = gradient[name] * scale
        expected = before[name] * (1 - rate * OPTIMIZER.weight_decay) - rate * clipped / (clipped.abs() + OPTIMIZER.eps)
        torch.testing.assert_close(value, expected, atol=1e-7, rtol=1e-6, msg=name)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing(learner, bad):
    learner.step(_shard(make_samples(5)))
    before, steps = _weights(learner), learner._optimizer.steps_taken
    samples = make_samples(5)
    samples[2] = replace(samples[2], term_advantages={"pg": np.full_like(samples[2].rollout_logprobs, bad)})
    report = learner.step(_shard(samples))
    assert not report.finite and not report.applied
    assert learner._optimizer.steps_taken == steps
    for name, value in _weights(learner).items():
        assert torch.equal(value, before[name]), name
    assert learner.step(_shard(make_samples(5))).applied


def test_a_step_without_a_live_row_is_skipped(learner):
    before = _weights(learner)
    report = learner.step(BatchShard(micro_batches=((), ()), term_counts={"pg": 8.0, "jsd": 0.0, "top": 0.0}))
    assert report.finite and not report.applied and report.loss == 0.0 and report.gradient_norm == 0.0
    for name, value in _weights(learner).items():
        assert torch.equal(value, before[name])


def test_sequence_logprobs_equal_plain_transformers_also_after_an_update(learner, tmp_path):
    generator = np.random.default_rng(3)
    prompts = [generator.integers(0, VOCABULARY, n).astype(np.int32) for n in (3, 40, 7, 30)]
    completions = [generator.integers(0, VOCABULARY, n).astype(np.int32) for n in (5, 30, 1, 9)]
    for round_number in range(2):
        got = learner.sequence_logprobs(prompts, completions, temperature=1.3)
        learner.save_policy(tmp_path / f"policy{round_number}")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / f"policy{round_number}").eval()
        assert plain.dtype == torch.float32
        for prompt, completion, values in zip(prompts, completions, got, strict=True):
            token_ids = torch.from_numpy(np.concatenate((prompt, completion))).long()
            with torch.no_grad():
                logits = plain(token_ids[None]).logits[0, len(prompt) - 1 : -1] / 1.3
            expected = torch.log_softmax(logits, -1).gather(1, token_ids[len(prompt) :, None])[:, 0]
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, expected.numpy(), atol=1e-5)
        assert learner.step(_shard(make_samples(8))).applied


def test_sequence_entropies_equal_plain_transformers(learner):
    generator = np.random.default_rng(4)
    prompts = [generator.integers(0, VOCABULARY, n).astype(np.int32) for n in (3, 70, 7)]
    completions = [generator.integers(0, VOCABULARY, n).astype(np.int32) for n in (5, 30, 1)]
    plain = AutoModelForCausalLM.from_pretrained(learner.settings.model_folder).eval()
    got = learner.sequence_scores(prompts, completions, temperature=1.3, entropies=True)
    alone = learner.sequence_logprobs(prompts, completions, temperature=1.3)
    for prompt, completion, scores, logprobs in zip(prompts, completions, got, alone, strict=True):
        token_ids = torch.from_numpy(np.concatenate((prompt, completion))).long()
        with torch.no_grad():
            values = torch.log_softmax(plain(token_ids[None]).logits[0, len(prompt) - 1 : -1].double() / 1.3, -1)
        assert scores.entropies.dtype == np.float32 and scores.entropies.shape == (len(completion),)
        np.testing.assert_allclose(scores.entropies, -(values.exp() * values).sum(-1).numpy(), atol=1e-5)
        assert scores.logprobs.tolist() == logprobs.tolist()
    assert learner.sequence_scores(prompts, completions, temperature=1.3)[0].entropies is None
    assert learner.sequence_scores([], [], temperature=1.0, entropies=True) == []


def test_parameters_carry_checkpoint_names_and_the_head_always(learner):
    tensors = dict(learner.named_full_parameters())
    metadata = learner.parameter_metadata()
    assert [name for name, *_ in metadata] == list(tensors)
    assert list(tensors)[-1] == "lm_head.weight" and next(iter(tensors)) == "model.embed_tokens.weight"
    assert [shape for *_, shape in metadata] == [tuple(tensor.shape) for tensor in tensors.values()]
    plain = AutoModelForCausalLM.from_pretrained(learner.settings.model_folder).state_dict()
    assert set(plain) == set(tensors)
    for name, value in plain.items():
        assert torch.equal(value, tensors[name])
    tensors["lm_head.weight"].zero_()
    assert all(float(value.abs().max()) > 0 for name, value in learner.named_full_parameters() if "weight" in name)


def test_unequal_term_names_and_missing_stage_are_refused(learner, tmp_path):
    with pytest.raises(ValueError, match="term_counts"):
        learner.step(BatchShard(micro_batches=(), term_counts={"other": 1.0}))
    fresh = make_learner(learner.settings.model_folder)
    with pytest.raises(ValueError, match="begin_stage"):
        fresh.step(BatchShard(micro_batches=(), term_counts={}))


def test_cross_entropy_learns_a_sequence(learner):
    composition = Composition(experience=DemonstrationExperience(), terms=(Term(name="ce", objective=CrossEntropy(), importance_cap=None),))
    learner.begin_stage(composition, OPTIMIZER.model_copy(update={"lr": 3e-3, "warmup_steps": 0}), temperature=1.0, reset_optimizer=True)
    samples = [replace(sample, term_weights={"ce": np.ones(len(sample.completion_token_ids), np.float32)}) for sample in make_samples(3)]
    shard = replace(_shard(samples), term_counts={"ce": float(sum(len(sample.completion_token_ids) for sample in samples))})
    losses = [learner.step(shard).loss for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]


def test_bfloat16_forward_keeps_float32_masters_and_the_gradients_direction(learner):
    shard = _shard(make_samples(8))
    expected, _ = _gradient_of(learner, shard)
    half = Learner(replace(learner.settings, dtype="bfloat16"))
    half.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True)
    half.keep_gradient = True
    assert half.step(replace(shard, micro_batches=((), *shard.micro_batches))).applied
    flat = [torch.cat([gradient[name].flatten() for name in expected]) for gradient in (expected, half.last_gradient)]
    assert all(gradient.dtype == torch.float32 for gradient in half.last_gradient.values())
    assert float(torch.cosine_similarity(*flat, dim=0)) > 0.99
    assert not torch.equal(*flat)
