"""vLLM in this process, synchronously; the same class on CPU and GPU (device, dtype and transfer backend differ).

Never build one in the learner's process: vLLM on a CPU replaces ``torch.set_num_threads``. Requests carry seeds, and on a
CPU chunked prefill crashes with them, so it is off. Generation is then repeatable over calls, order and batch sizes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.errors import WeightTransferError
from cluster.messages import Completion, GenerationRequest
from rollout.engines.base import EngineSampling

CPU_KV_CACHE_BYTES = 512 << 20
BLOCK_SIZE = 32
"""Tokens; vLLM's default of 128 on a CPU shares no prefix of a short prompt."""
MIN_BATCHED_TOKENS = 8192
MAX_SEQUENCES = 256


class VllmEngine:
    """See ``rollout/engines/base.py: Engine``."""

    def __init__(
        self,
        model_folder: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        max_model_len: int,
        seed: int = 0,
        weight_transfer: str = "shared_memory",
        max_logprobs: int = 0,
        threads: int = 1,
        gpu_memory_utilization: float = 0.85,
    ):
        _prepare_environment(device, threads)
        from vllm import LLM
        from vllm.config.weight_transfer import WeightTransferConfig

        from cluster.transfer.plugin import register, vllm_backend

        register()
        options: dict[str, Any] = {"gpu_memory_utilization": gpu_memory_utilization}
        if device == "cpu":
            options = {"kv_cache_memory_bytes": CPU_KV_CACHE_BYTES, "enforce_eager": True, "enable_chunked_prefill": False, "block_size": BLOCK_SIZE}
        self._llm = LLM(
            model=model_folder,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_batched_tokens=max(max_model_len, MIN_BATCHED_TOKENS),
            max_num_seqs=MAX_SEQUENCES,
            max_logprobs=max(max_logprobs, 1),
            logprobs_mode="processed_logprobs",
            seed=seed,
            enable_prefix_caching=True,
            disable_log_stats=True,
            trust_remote_code=False,
            weight_transfer_config=WeightTransferConfig(backend=vllm_backend(weight_transfer)),
            **options,
        )
        self.policy_version = 0
        self._vocabulary_size = self._llm.model_config.get_vocab_size()

    # -- sampling ----------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[GenerationRequest], sampling: EngineSampling) -> list[tuple[Completion, ...]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        if not requests:
            return []
        prompts = [TokensPrompt(prompt_token_ids=request.prompt_token_ids.tolist()) for request in requests]
        parameters = [
            SamplingParams(
                n=request.num_completions,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                logprobs=sampling.support_k,
                seed=request.seed,
                detokenize=False,
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            for request in requests
        ]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        return [
            tuple(self._completion(item, sampling.support_k) for item in sorted(output.outputs, key=lambda item: item.index))
            for output in outputs
        ]

    def _completion(self, output: Any, support_k: int) -> Completion:
        token_ids = np.asarray(output.token_ids, dtype=np.int32)
        logprobs, support_ids, support_logprobs = unflatten_logprobs(output.logprobs, token_ids, support_k)
        return Completion(
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason="stop" if output.finish_reason == "stop" else "length",
            policy_version=self.policy_version,
            support_ids=support_ids,
            support_logprobs=support_logprobs,
        )

    def probe(self) -> None:
        request = GenerationRequest(prompt_token_ids=np.array([1], dtype=np.int32), num_completions=1, seed=0)
        self.generate([request], EngineSampling(temperature=1.0, top_p=1.0, max_tokens=1))

    # -- weights: vLLM's own four calls, and a way out of a half-open update -----------------------------------------

    def init_weight_transfer_engine(self, init_info: dict) -> None:
        self._llm.collective_rpc("init_weight_transfer_engine", args=(_plain(init_info, "init_info"),))

    def start_weight_update(self) -> None:
        self._llm.collective_rpc("start_weight_update")

    def update_weights(self, update_info: dict) -> None:
        self._llm.collective_rpc("update_weights", args=(_plain(update_info, "update_info"),))

    def finish_weight_update(self) -> None:
        self._llm.collective_rpc("finish_weight_update")
        self._llm.reset_prefix_cache()

    def update_weight_version(self, new_version: str) -> None:
        self.policy_version = int(new_version)

    def drain(self) -> None:
        with contextlib.suppress(Exception):  # 'without matching start' is the good case, a broken half-update the other
            self.finish_weight_update()

    def shutdown(self) -> None:
        with contextlib.suppress(Exception):
            self._llm.llm_engine.engine_core.shutdown()


def _plain(request: Any, field: str) -> dict:
    """vLLM's clients send request objects, ours sends dicts."""
    return request if isinstance(request, dict) else getattr(request, field)


def _prepare_environment(device: str, threads: int) -> None:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if device == "cpu":
        os.environ["OMP_NUM_THREADS"] = str(threads)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")


def unflatten_logprobs(flat: Any, token_ids: np.ndarray, support_k: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """vLLM's flat lists as arrays: sampled log-probabilities [T], and the top-K ids and log-probabilities [T, K].

    A position holds the sampled token first, then the top K; the sampled one is left out where it is among them, so a
    position has K or K + 1 entries. Raises ``WeightTransferError`` never; a missing entry is an ``IndexError`` of numpy.
    """
    starts = np.asarray(flat.start_indices, dtype=np.int64)
    ends = np.asarray(flat.end_indices, dtype=np.int64)
    ids = np.asarray(flat.token_ids, dtype=np.int32)
    values = np.asarray(flat.logprobs, dtype=np.float32)
    widths = ends - starts
    position = np.repeat(np.arange(len(token_ids)), widths)
    sampled = np.empty(len(token_ids), dtype=np.float32)
    is_sampled = ids == token_ids[position]
    sampled[position[is_sampled]] = values[is_sampled]
    if support_k == 0:
        return sampled, None, None
    order = np.lexsort((ids, -values, position))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(widths) - widths, widths)
    kept = order[rank < support_k]
    return sampled, ids[kept].reshape(-1, support_k), values[kept].reshape(-1, support_k)


__all__ = ["VllmEngine", "WeightTransferError", "unflatten_logprobs"]
