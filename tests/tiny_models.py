"""Tiny random Qwen3 folders, and real engines in processes of their own, for the engine and weight tests.

vLLM on a CPU changes its process (threads, process groups), so no engine runs inside pytest.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import string
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from rollout.engines.actor import worker_environment

VOCABULARY = 128
MAX_MODEL_LEN = 512
EOS = 1
MAX_LOGPROBS = 20
SUPPORT_K = 20


def write_tiny_model(folder: Path, *, tied: bool, seed: int = 0) -> Path:
    """A Qwen3 of 0.9M parameters with peaked random outputs, a character tokenizer, and eos 1."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_MODEL_LEN,
        tie_word_embeddings=tied,
        initializer_range=0.08,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [c for c in string.printable if c not in "\r\x0b\x0c"]
    vocabulary = {"<pad>": 0, "<end>": EOS, "<unk>": 2} | {c: i + 3 for i, c in enumerate(characters)}
    vocabulary |= {f"<spare{i}>": i for i in range(len(vocabulary), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<unk>")


@functools.cache
def tiny_model(tied: bool) -> Path:
    """One folder of each kind per test session."""
    return write_tiny_model(Path(_session_folder().name) / ("tied" if tied else "untied"), tied=tied)


@functools.cache
def _session_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="hf-tiny-")


@functools.cache
def tiny_engine(tied: bool) -> EngineProcess:
    """One engine of each kind per test session; tests publish whatever weights they need first."""
    return EngineProcess(engine_options(tied))


def engine_options(tied: bool) -> dict[str, Any]:
    return {
        "model_folder": str(tiny_model(tied)),
        "dtype": "float32",
        "device": "cpu",
        "max_model_len": MAX_MODEL_LEN,
        "seed": 0,
        "weight_transfer": "shared_memory",
        "max_logprobs": MAX_LOGPROBS,
        "threads": 2,
    }


class EngineProcess:
    """A ``VllmEngine`` behind a pipe: any method by name, exceptions as they are."""

    def __init__(self, options: dict[str, Any]):
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, options), daemon=True)
        with mock.patch.dict(os.environ, worker_environment(options["threads"])):
            self._process.start()
        child.close()
        atexit.register(self.close)
        self._answer()

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return functools.partial(self._call, method)

    def _call(self, method: str, *arguments: Any) -> Any:
        self._pipe.send((method, arguments))
        return self._answer()

    def _answer(self) -> Any:
        if not self._pipe.poll(300):
            raise TimeoutError("the engine process did not answer within 300 s")
        kind, value = self._pipe.recv()
        if kind == "error":
            raise value
        return value

    def close(self) -> None:
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


def _serve(pipe: Any, options: dict[str, Any]) -> None:
    from rollout.engines.vllm import VllmEngine

    engine = _attempt(lambda: VllmEngine(**options), pipe, report_value=False)
    while engine is not None:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        _attempt(lambda method=method, arguments=arguments: getattr(engine, method)(*arguments), pipe)


def _attempt(work: Any, pipe: Any, *, report_value: bool = True) -> Any:
    try:
        value = work()
    except Exception as error:
        pipe.send(("error", error))
        return None
    pipe.send(("value", value if report_value else None))
    return value


class DirectClient:
    """The weight-sync client over engines at hand, without Ray."""

    def __init__(self, *engines: Any):
        self.engines = engines
        self.version: int | None = None

    def init_weight_transfer_engine(self, init_info: dict) -> None:
        self._all("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        self._all("start_weight_update")

    def update_weights(self, update_info: dict) -> None:
        self._all("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._all("finish_weight_update", weight_version)

    def drain(self) -> None:
        self._all("drain")

    def _all(self, method: str, *arguments: Any) -> None:
        for engine in self.engines:
            getattr(engine, method)(*arguments)


class PlainLearner:
    """Stands in for the learner: fp32 tensors with checkpoint names, ``lm_head.weight`` included."""

    def __init__(self, tied: bool, *, folder: Path | None = None):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder or tiny_model(tied), dtype=torch.float32)
        self.model.eval()

    def perturb(self, seed: int, scale: float = 0.1) -> None:
        """Change every parameter by a relative ``scale``."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.abs().mean() * scale)

    def named_full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.model.named_parameters():
            yield name, tensor.detach()
        if self.model.config.tie_word_embeddings:
            yield "lm_head.weight", self.model.lm_head.weight.detach()

    def parameter_metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.named_full_parameters()]

    def sequence_logprobs(self, prompts: list, completions: list, *, temperature: float) -> list:
        """float32 [T] of each completion's ids."""
        full = self.full_logprobs(prompts, completions, temperature)
        return [rows.gather(1, torch.tensor(ids).long()[:, None])[:, 0].numpy() for rows, ids in zip(full, completions, strict=True)]

    @torch.no_grad()
    def full_logprobs(self, prompts: list, completions: list, temperature: float = 1.0) -> list[torch.Tensor]:
        """float32 [T, V] at every position of each completion, one sequence at a time."""
        rows = []
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = torch.as_tensor([*prompt.tolist(), *completion.tolist()])[None]
            logits = self.model(ids).logits[0, len(prompt) - 1 : -1]
            rows.append(torch.log_softmax(logits.float() / temperature, dim=-1))
        return rows
