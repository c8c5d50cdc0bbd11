"""vLLM in this process, synchronously; the same class on CPU and GPU (device, dtype and transfer backend differ).

Never build one in the learner's process: vLLM on a CPU replaces ``torch.set_num_threads``. Invariants: generation is
repeatable over calls, order and batch sizes (every request carries a seed); every completion carries the publication it
was sampled from; nothing is sampled while a weight update is open or after one that was not whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import SpecError, WeightTransferError
from cluster.messages import Completion, GenerationRequest
from rollout.engines.base import EngineSampling
from rollout.engines.flat_logprobs import unflatten_logprobs

BLOCK_SIZE = 32
"""Tokens; vLLM's default of 128 on a CPU shares no prefix of a short prompt."""
MIN_BATCHED_TOKENS = 8192
MAX_SEQUENCES = 256
MIN_KV_CACHE_BYTES, MAX_KV_CACHE_BYTES = 64 << 20, 2 << 30
MIN_TEMPERATURE = 0.01
"""vLLM raises anything below to this, silently; the log-probabilities would not be those that were asked for."""


class VllmEngine:
    """See ``rollout/engines/base.py: Engine``; the weight methods are named as in vLLM's API.

    ``threads`` must also be this process's OMP_NUM_THREADS before torch loads (the actor sees to that).
    """

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
            **_device_options(device, dtype, model_folder, max_model_len, gpu_memory_utilization),
        )
        self.policy_version = 0
        self._max_model_len = max_model_len
        self._max_logprobs = max(max_logprobs, 1)
        self._settings = {"model_folder": model_folder, "dtype": dtype, "device": device, "threads": threads}
        self._update_open = False
        self._must_publish = False

    # -- sampling ----------------------------------------------------------------------------------------------------

    def generate(self, requests: Sequence[GenerationRequest], sampling: EngineSampling) -> list[tuple[Completion, ...]]:
        """Sample all requests as one batch, at any ``top_p`` and ``top_k``; see ``Engine.generate``.

        Raises ``SpecError`` for a request the engine cannot hold and ``WeightTransferError`` while its weights are not
        those of one publication. With top_p < 1 or a top_k log-probabilities are those of what is left, -inf outside it.
        """
        if self._must_publish:
            raise WeightTransferError("this engine was left with half an update; publish again before generating")
        self._check(requests, sampling)
        return self._generate(requests, sampling)

    def _generate(self, requests: Sequence[GenerationRequest], sampling: EngineSampling) -> list[tuple[Completion, ...]]:
        from vllm.inputs import TokensPrompt

        if self._update_open:
            raise WeightTransferError("a weight update is open in this engine; finish it or drain before generating")
        if not requests:
            return []
        prompts = [TokensPrompt(prompt_token_ids=np.asarray(request.prompt_token_ids).tolist()) for request in requests]
        parameters = [_sampling_parameters(request, sampling) for request in requests]
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

    def _check(self, requests: Sequence[GenerationRequest], sampling: EngineSampling) -> None:
        if sampling.temperature < MIN_TEMPERATURE:
            raise SpecError(f"temperature is {sampling.temperature}; vLLM samples at {MIN_TEMPERATURE} or more")
        if sampling.support_k > self._max_logprobs:
            raise SpecError(f"support_k is {sampling.support_k}; this engine was started for at most {self._max_logprobs}")
        longest = max((len(request.prompt_token_ids) for request in requests), default=1)
        if longest + sampling.max_tokens > self._max_model_len:
            raise SpecError(
                f"a prompt of {longest} tokens and max_tokens {sampling.max_tokens} exceed the engine's {self._max_model_len} tokens"
            )
        if any(len(request.prompt_token_ids) == 0 or request.num_completions < 1 for request in requests):
            raise SpecError("every request needs a prompt of one token or more and num_completions of 1 or more")

    def probe(self) -> None:
        """One token; answers also between ``drain`` and the publication that must follow."""
        request = GenerationRequest(prompt_token_ids=np.array([1], dtype=np.int32), num_completions=1, seed=0)
        self._generate([request], EngineSampling(temperature=1.0, top_p=1.0, max_tokens=1))

    def info(self) -> dict[str, Any]:
        """Settings and state, for a log or an error message."""
        return {**self._settings, "pid": os.getpid(), "policy_version": self.policy_version, "must_publish": self._must_publish}

    # -- weights: vLLM's own four calls, and a way out of a half-open update -----------------------------------------

    def init_weight_transfer_engine(self, init_info: Any) -> None:
        self._llm.collective_rpc("init_weight_transfer_engine", args=(_plain(init_info, "init_info"),))

    def start_weight_update(self) -> None:
        self._llm.collective_rpc("start_weight_update")
        self._update_open = True

    def update_weights(self, update_info: Any) -> None:
        """Receive; an error closes the update, and the weights stay what they were or must be published again."""
        from cluster.transfer.backend import close_reload

        try:
            self._llm.collective_rpc("update_weights", args=(_plain(update_info, "update_info"),))
        except BaseException as error:
            half_loaded = any(self._llm.collective_rpc(close_reload))
            refused = isinstance(error, WeightTransferError)  # before anything was touched
            self._must_publish |= half_loaded or not refused
            self._update_open = False
            raise

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Close the update, drop key-value blocks of the old weights, and take the version if one is given."""
        self._llm.collective_rpc("finish_weight_update")
        self._llm.reset_prefix_cache()
        self._update_open = self._must_publish = False
        if weight_version is not None:
            self.update_weight_version(weight_version)

    def update_weight_version(self, new_version: str) -> None:
        self._llm.llm_engine.set_weight_version(new_version)
        self.policy_version = int(new_version)

    def drain(self) -> None:
        """Close what a learner left open, however far it came; a full publication must then follow."""
        from cluster.transfer.backend import close_reload

        was_open = self._update_open
        try:
            self._llm.collective_rpc("finish_weight_update")
        except RuntimeError as error:
            if "without a matching start" not in str(error):
                raise
        left_open = any(self._llm.collective_rpc(close_reload))
        self._update_open = False
        self._must_publish |= was_open or left_open
        self._llm.reset_prefix_cache()

    def shutdown(self) -> None:
        """Let go of the model and its cache; the engine is of no use afterwards."""
        self._llm.llm_engine.engine_core.shutdown()


def _sampling_parameters(request: GenerationRequest, sampling: EngineSampling) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=request.num_completions,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or 0,
        max_tokens=sampling.max_tokens,
        logprobs=sampling.support_k,
        seed=int(request.seed),
        detokenize=False,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _plain(request: Any, field: str) -> Any:
    """vLLM's clients send request objects, ours sends plain dicts."""
    return getattr(request, field, request)


def _prepare_environment(device: str, threads: int) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # a subprocess would neither see our backend object nor our threads
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if device != "cpu":
        return
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB only, and it would win over our own number
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(threads)


def _device_options(device: str, dtype: str, model_folder: str, max_model_len: int, gpu_memory_utilization: float) -> dict[str, Any]:
    if device != "cpu":
        return {"gpu_memory_utilization": gpu_memory_utilization}
    return {
        "kv_cache_memory_bytes": kv_cache_bytes(Path(model_folder), max_model_len, 4 if dtype == "float32" else 2),
        "enforce_eager": True,
        "enable_chunked_prefill": False,  # with per-request seeds it crashes on a CPU
        "block_size": BLOCK_SIZE,
    }


def kv_cache_bytes(model_folder: Path, max_model_len: int, bytes_per_value: int) -> int:
    """Room for ``MAX_SEQUENCES`` sequences of full length, within 64 MiB and 2 GiB, and for two sequences in any case."""
    config = json.loads((model_folder / "config.json").read_text())
    config = config.get("text_config", config)
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    per_token = 2 * config["num_hidden_layers"] * heads * head_size * bytes_per_value
    per_sequence = per_token * (max_model_len + BLOCK_SIZE)
    wanted = min(max(MAX_SEQUENCES * per_sequence, MIN_KV_CACHE_BYTES), MAX_KV_CACHE_BYTES)
    return max(wanted, 2 * per_sequence)
