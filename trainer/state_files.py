"""Files of the learner: safetensors and JSON, never a pickle.

A policy folder is a Hugging Face folder (``AutoModelForCausalLM.from_pretrained`` reads it). A state folder holds
``policy.safetensors``, ``optimizer.safetensors``, ``rng.safetensors``, ``state.json`` and, in a stage with an L2 anchor at
its start, ``anchor.safetensors``, all tensors whole, so that any number of ranks can read it. The JSON is written last: a
folder without it is not a state.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

MAX_FILE_BYTES = 4 << 30
"""Of one safetensors file of a policy folder; larger models get several and an index."""
STATE_FORMAT = 1
ANCHOR_FILE = "anchor.safetensors"
CONFIG_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""What is carried from the base model's folder besides its config and its weights."""


def write_policy(folder: Path, base_folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write fp32 tensors with their checkpoint names, the base's config (dtype float32) and its tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in CONFIG_FILES:
        if (base_folder / name).is_file():
            shutil.copyfile(base_folder / name, folder / name)
    _write_weights(folder, tensors)
    config = json.loads((base_folder / "config.json").read_text())
    config.pop("torch_dtype", None)
    write_json(folder / "config.json", {**config, "dtype": "float32"})


def _write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    parts: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, tensor in tensors:
        if size + tensor.nbytes > MAX_FILE_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
    if len(parts) == 1:
        write_tensors(folder / "model.safetensors", parts[0])
        return
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file_name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        write_tensors(folder / file_name, part)
        weight_map |= dict.fromkeys(part, file_name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def read_policy(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, tensor) of every weight of a Hugging Face folder, one at a time."""
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    for file in sorted(files):
        yield from read_tensors(folder / file)


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write under a temporary name, flush to disk, then rename."""
    temporary = path.with_suffix(".partial")
    save_file(tensors, str(temporary), metadata={"format": "pt"})
    _settle(temporary, path)


def read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(str(path), framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (a safetensors file is no dict)
            yield name, file.get_tensor(name)


def write_json(path: Path, content: dict) -> None:
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    _settle(temporary, path)


def _settle(temporary: Path, path: Path) -> None:
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)


def rng_state(device: torch.device) -> Tensor:
    """uint8: this rank's CPU generator, then its CUDA generator where it has one."""
    parts = [torch.get_rng_state()]
    if device.type == "cuda":
        parts.append(torch.cuda.get_rng_state(device))
    return torch.cat(parts)


def restore_rng(state: Tensor, device: torch.device) -> None:
    """Undo ``rng_state``; a state saved on another kind of device restores the CPU's part."""
    cpu_bytes = torch.get_rng_state().shape[0]
    torch.set_rng_state(state[:cpu_bytes].clone())
    if device.type == "cuda" and state.shape[0] > cpu_bytes:
        torch.cuda.set_rng_state(state[cpu_bytes:].clone(), device)
