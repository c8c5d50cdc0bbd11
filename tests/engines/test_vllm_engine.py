"""The real engine against a float32 Transformers forward of the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cluster.errors import SpecError
from cluster.messages import Completion, GenerationRequest
from rollout.engines.base import EngineSampling
from tests.tiny_models import EOS, MAX_MODEL_LEN, SUPPORT_K, EngineProcess, PlainLearner

SAMPLING = EngineSampling(temperature=1.0, top_p=1.0, max_tokens=24)


def requests_of(num: int, *, num_completions: int = 3, seed: int = 0) -> list[GenerationRequest]:
    generator = np.random.default_rng(seed)
    return [
        GenerationRequest(
            prompt_token_ids=generator.integers(3, 100, 5 + 7 * (i % 6)).astype(np.int32), num_completions=num_completions, seed=100 * i
        )
        for i in range(num)
    ]


def flat(requests: list[GenerationRequest], results: list[tuple[Completion, ...]]) -> tuple[list, list[Completion]]:
    completions = [completion for group in results for completion in group]
    return [request.prompt_token_ids for request in requests for _ in range(request.num_completions)], completions


def same(left: Completion, right: Completion) -> bool:
    return np.array_equal(left.token_ids, right.token_ids) and np.array_equal(left.logprobs, right.logprobs)


def test_the_shape_of_a_result(engine: EngineProcess):
    requests = requests_of(6)
    results = engine.generate(requests, SAMPLING)
    assert [len(group) for group in results] == [3] * 6
    for completion in flat(requests, results)[1]:
        assert completion.token_ids.dtype == np.int32 and completion.logprobs.dtype == np.float32
        assert completion.logprobs.shape == completion.token_ids.shape and 1 <= len(completion.token_ids) <= 24
        assert completion.policy_version == 7
        assert completion.support_ids is None
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == EOS)
        assert EOS not in completion.token_ids[:-1]
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 24


def test_a_completion_that_stops_includes_the_end_id(engine: EngineProcess):
    sampling = EngineSampling(temperature=2.0, top_p=1.0, max_tokens=200)
    completions = flat([], engine.generate(requests_of(8, num_completions=8), sampling))[1]
    stopped = [completion for completion in completions if completion.finish_reason == "stop"]
    assert stopped and all(completion.token_ids[-1] == EOS for completion in stopped)


def test_seeds_repeat_over_calls_order_and_batch_size(engine: EngineProcess):
    requests = requests_of(12)
    first = engine.generate(requests, SAMPLING)
    again = engine.generate(requests, SAMPLING)
    backwards = engine.generate(requests[::-1], SAMPLING)[::-1]
    alone = [engine.generate([request], SAMPLING)[0] for request in requests[:4]]
    for other in (again, backwards, alone):
        assert all(same(a, b) for ours, theirs in zip(first, other, strict=False) for a, b in zip(ours, theirs, strict=True))


def test_child_j_is_sampled_with_seed_plus_j(engine: EngineProcess):
    prompt = requests_of(1)[0].prompt_token_ids
    group = engine.generate([GenerationRequest(prompt_token_ids=prompt, num_completions=4, seed=40)], SAMPLING)[0]
    single = engine.generate(
        [GenerationRequest(prompt_token_ids=prompt, num_completions=1, seed=40 + j) for j in range(4)], SAMPLING
    )
    assert all(same(child, one[0]) for child, one in zip(group, single, strict=True))
    assert len({completion.token_ids.tobytes() for completion in group}) == 4


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_model_at_the_sampling_temperature(engine, reference: PlainLearner, temperature: float):
    requests = requests_of(8)
    sampling = EngineSampling(temperature=temperature, top_p=1.0, max_tokens=24)
    prompts, completions = flat(requests, engine.generate(requests, sampling))
    expected = reference.sequence_logprobs(prompts, [c.token_ids for c in completions], temperature=temperature)
    worst = max(np.abs(c.logprobs - e).max() for c, e in zip(completions, expected, strict=True))
    assert worst < 1e-4


def test_the_support_is_the_top_k_of_the_full_distribution(engine: EngineProcess, reference: PlainLearner):
    requests = requests_of(6)
    sampling = EngineSampling(temperature=1.0, top_p=1.0, max_tokens=24, support_k=SUPPORT_K)
    prompts, completions = flat(requests, engine.generate(requests, sampling))
    outside = 0
    for completion, rows in zip(completions, reference.full_logprobs(prompts, [c.token_ids for c in completions]), strict=True):
        values, ids = torch.topk(rows, SUPPORT_K, dim=1)
        assert completion.support_ids.shape == (len(completion.token_ids), SUPPORT_K)
        assert completion.support_ids.dtype == np.int32 and completion.support_logprobs.dtype == np.float32
        np.testing.assert_allclose(completion.support_logprobs, values.numpy(), atol=1e-4)
        swapped = completion.support_ids != ids.numpy()
        own = rows.numpy()[np.arange(len(rows))[:, None], completion.support_ids]
        np.testing.assert_allclose(own[swapped], values.numpy()[swapped], atol=1e-5)  # ids differ only where values tie
        assert all(len(set(row)) == SUPPORT_K for row in completion.support_ids.tolist())
        in_support = (completion.support_ids == completion.token_ids[:, None]).any(axis=1)
        outside += int((~in_support).sum())
        expected = rows.gather(1, torch.tensor(completion.token_ids).long()[:, None])[:, 0].numpy()
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
    assert outside > 0  # a sampled id outside the top K was met


def test_asking_for_a_support_does_not_change_the_samples(engine: EngineProcess):
    requests = requests_of(6)
    plain = engine.generate(requests, SAMPLING)
    wide = engine.generate(requests, EngineSampling(temperature=1.0, top_p=1.0, max_tokens=24, support_k=5))
    assert all(same(a, b) for ours, theirs in zip(plain, wide, strict=True) for a, b in zip(ours, theirs, strict=True))


def test_a_nucleus_renormalises_the_logprobs(engine: EngineProcess, reference: PlainLearner):
    requests = requests_of(4)
    prompts, completions = flat(requests, engine.generate(requests, EngineSampling(temperature=1.0, top_p=0.7, max_tokens=12)))
    for completion, rows in zip(completions, reference.full_logprobs(prompts, [c.token_ids for c in completions]), strict=True):
        ordered, ids = torch.sort(rows.exp(), dim=1, descending=True)
        nucleus = torch.cumsum(ordered, dim=1) - ordered < 0.7
        mass = (ordered * nucleus).sum(dim=1)
        sampled = rows.gather(1, torch.tensor(completion.token_ids).long()[:, None])[:, 0]
        np.testing.assert_allclose(completion.logprobs, (sampled - mass.log()).numpy(), atol=1e-3)
        assert ((ids == torch.tensor(completion.token_ids)[:, None]) & nucleus).any(dim=1).all()


def test_top_k_samples_among_the_most_likely_ids_and_renormalises(engine: EngineProcess, reference: PlainLearner):
    requests = requests_of(4)
    sampling = EngineSampling(temperature=1.0, top_p=1.0, max_tokens=12, top_k=3, support_k=5)
    prompts, completions = flat(requests, engine.generate(requests, sampling))
    for completion, rows in zip(completions, reference.full_logprobs(prompts, [c.token_ids for c in completions]), strict=True):
        best, ids = torch.topk(rows, 3, dim=1)
        sampled = rows.gather(1, torch.tensor(completion.token_ids).long()[:, None])[:, 0]
        np.testing.assert_allclose(completion.logprobs, (sampled - best.logsumexp(dim=1)).numpy(), atol=1e-3)
        assert (ids == torch.tensor(completion.token_ids)[:, None]).any(dim=1).all()
        assert (completion.support_ids[:, :3] == ids.numpy()).all() and np.isneginf(completion.support_logprobs[:, 3:]).all()
        np.testing.assert_allclose(np.exp(completion.support_logprobs).sum(axis=1), 1.0, atol=1e-5)


def test_requests_the_engine_cannot_hold_are_refused(engine: EngineProcess):
    long = [GenerationRequest(prompt_token_ids=np.full(MAX_MODEL_LEN - 10, 5, dtype=np.int32), num_completions=1, seed=0)]
    with pytest.raises(SpecError, match="exceed the engine's 512"):
        engine.generate(long, SAMPLING)
    with pytest.raises(SpecError, match="at most 20"):
        engine.generate(requests_of(1), EngineSampling(temperature=1.0, top_p=1.0, max_tokens=4, support_k=21))
    with pytest.raises(SpecError, match="or more"):
        engine.generate(requests_of(1), EngineSampling(temperature=0.001, top_p=1.0, max_tokens=4))
    assert engine.generate([], SAMPLING) == []
    engine.probe()
