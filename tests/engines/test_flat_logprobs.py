"""Unpacking of vLLM's flat lists, and the other parts that need no engine."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.messages import GenerationRequest
from rollout.engines.base import EngineSampling
from rollout.engines.flat_logprobs import unflatten_logprobs
from rollout.engines.scripted import ScriptedEngine
from rollout.engines.vllm import kv_cache_bytes
from rollout.pool import split_requests


def flat_of(rows: list[list[tuple[int, float]]]) -> SimpleNamespace:
    ends = np.cumsum([len(row) for row in rows]).tolist()
    return SimpleNamespace(
        start_indices=[0, *ends[:-1]],
        end_indices=ends,
        token_ids=[token for row in rows for token, _ in row],
        logprobs=[value for row in rows for _, value in row],
    )


def test_the_sampled_id_comes_first_and_may_repeat():
    flat = flat_of([[(5, -3.0), (8, -0.5), (2, -1.5)], [(8, -0.2), (8, -0.2), (1, -2.0)]])
    sampled, ids, values = unflatten_logprobs(flat, np.array([5, 8], dtype=np.int32), 2)
    np.testing.assert_array_equal(sampled, np.array([-3.0, -0.2], dtype=np.float32))
    np.testing.assert_array_equal(ids, [[8, 2], [8, 1]])
    np.testing.assert_array_equal(values, np.array([[-0.5, -1.5], [-0.2, -2.0]], dtype=np.float32))


def test_rows_of_k_and_k_plus_one_ids():
    flat = flat_of([[(5, -3.0), (8, -0.5), (2, -1.5)], [(1, -2.0), (8, -0.2)]])
    sampled, ids, values = unflatten_logprobs(flat, np.array([5, 1], dtype=np.int32), 2)
    np.testing.assert_array_equal(sampled, np.array([-3.0, -2.0], dtype=np.float32))
    np.testing.assert_array_equal(ids, [[8, 2], [8, 1]])
    np.testing.assert_array_equal(values, np.array([[-0.5, -1.5], [-0.2, -2.0]], dtype=np.float32))


def test_no_support_asked_for():
    sampled, ids, values = unflatten_logprobs(flat_of([[(5, -3.0)], [(1, -2.0)]]), np.array([5, 1], dtype=np.int32), 0)
    np.testing.assert_array_equal(sampled, np.array([-3.0, -2.0], dtype=np.float32))
    assert ids is None and values is None


def test_missing_logprobs_are_an_error():
    with pytest.raises(ValueError, match="no log-probability"):
        unflatten_logprobs(flat_of([[(5, -3.0), (8, -0.5)], [(1, -2.0)]]), np.array([5, 2], dtype=np.int32), 1)
    with pytest.raises(ValueError, match="2 were asked for"):
        unflatten_logprobs(flat_of([[(5, -3.0)], [(1, -2.0), (3, -3.0)]]), np.array([5, 1], dtype=np.int32), 2)


@pytest.mark.parametrize(
    "field",
    [{"temperature": 0.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_tokens": 0}, {"support_k": -1}, {"top_k": 0}],
)
def test_sampling_that_makes_no_sense_is_refused(field: dict):
    with pytest.raises(ValueError, match=next(iter(field))):
        EngineSampling(**{"temperature": 1.0, "top_p": 1.0, "max_tokens": 4} | field)


def test_a_scripted_engine_depends_on_prompt_and_seed():
    engine = ScriptedEngine(lambda prompt, seed: [int(prompt[0]), seed], eos_token_id=1)
    request = GenerationRequest(prompt_token_ids=np.array([9], dtype=np.int32), num_completions=2, seed=30)
    group = engine.generate([request], EngineSampling(temperature=1.0, top_p=1.0, max_tokens=8, support_k=3))[0]
    assert [completion.token_ids.tolist() for completion in group] == [[9, 30, 1], [9, 31, 1]]
    assert group[0].finish_reason == "stop" and group[0].support_ids.shape == (3, 3)
    short = engine.generate([request], EngineSampling(temperature=1.0, top_p=1.0, max_tokens=2))[0][0]
    assert short.finish_reason == "length" and short.token_ids.tolist() == [9, 30]


def test_a_scripted_support_ends_where_top_k_does():
    engine = ScriptedEngine(lambda prompt, seed: [5], eos_token_id=1, logprob=-1.0)
    request = GenerationRequest(prompt_token_ids=np.array([9], dtype=np.int32), num_completions=1, seed=0)
    sampling = EngineSampling(temperature=1.0, top_p=1.0, max_tokens=8, top_k=2, support_k=3)
    completion = engine.generate([request], sampling)[0][0]
    assert completion.support_ids.tolist() == [[0, 1, 2]] * 2
    assert completion.support_logprobs.tolist() == [[-1.0, -2.0, float("-inf")]] * 2


def test_requests_are_split_evenly_and_completely():
    requests = [
        GenerationRequest(prompt_token_ids=np.zeros(length, dtype=np.int32), num_completions=count, seed=0)
        for length, count in [(10, 8), (10, 1), (400, 8), (10, 8), (10, 1), (10, 8), (10, 8)]
    ]
    shares = split_requests(requests, 16, 3)
    assert sorted(index for share in shares for index in share) == list(range(7))
    loads = [sum(len(requests[i].prompt_token_ids) + 16 * requests[i].num_completions for i in share) for share in shares]
    assert max(loads) == 528 and max(loads[1:]) - min(loads[1:]) <= 138
    assert shares == split_requests(requests, 16, 3)
    assert split_requests(requests[:1], 16, 3) == [[0], [], []]


def test_the_cache_holds_all_sequences_within_its_bounds(tmp_path):
    config = {"num_hidden_layers": 4, "num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 32, "hidden_size": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert kv_cache_bytes(tmp_path, 512, 4) == 256 * (512 + 32) * 2 * 4 * 2 * 32 * 4
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 400}))
    assert kv_cache_bytes(tmp_path, 512, 4) == 2 << 30
    assert kv_cache_bytes(tmp_path, 1 << 16, 4) == 2 * ((1 << 16) + 32) * 2 * 400 * 2 * 32 * 4
