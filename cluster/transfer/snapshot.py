"""A snapshot: the whole policy of one version as one safetensors file of float32 tensors.

Names are those of a Hugging Face checkpoint, ``lm_head.weight`` included even when it is tied to the embedding.
Invariant: a file with a snapshot's name is complete; it is written under another name and renamed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_NAME = re.compile(r"snapshot-(\d{10,})\.safetensors")


def snapshot_path(folder: Path, version: int) -> Path:
    """Where the snapshot of ``version`` lies in ``folder``."""
    return Path(folder) / f"snapshot-{version:010d}.safetensors"


def write_snapshot(folder: Path, version: int, tensors: Iterable[tuple[str, Tensor]]) -> Path:
    """Write one file with every tensor as float32 and return its path; an older file of that version is replaced.

    Two names that share storage (tied embeddings) become two full tensors. Raises ValueError for a name that
    comes twice.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    collected: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors:
        if name in collected:
            raise ValueError(f"tensor {name!r} came twice")
        value = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
        if value.untyped_storage().data_ptr() in storages:
            value = value.clone()  # safetensors refuses shared memory
        storages.add(value.untyped_storage().data_ptr())
        collected[name] = value
    path = snapshot_path(folder, version)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(collected, temporary, metadata={"version": str(version), "num_tensors": str(len(collected))})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def read_snapshot(path: Path) -> dict[str, Tensor]:
    """Return name -> float32 tensor, mapped from the file: copy before writing into one."""
    with safe_open(path, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in _names(handle)}


def snapshot_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name -> shape from the header of a safetensors file; no tensor is read."""
    with safe_open(path, framework="pt") as handle:
        return {name: tuple(handle.get_slice(name).get_shape()) for name in _names(handle)}


def snapshot_version(path: Path) -> int:
    """The version that a snapshot file says it holds."""
    with safe_open(path, framework="pt") as handle:
        return int(handle.metadata()["version"])


def _names(handle: Any) -> list[str]:
    return list(handle.keys())


def prune(folder: Path, keep: int) -> list[Path]:
    """Delete all but the ``keep`` newest snapshots of a folder, and return what was deleted.

    What a killed writer left half-written goes too (a folder has one writer). A process that has mapped a deleted
    file keeps its pages.
    """
    for left_over in Path(folder).glob(".snapshot-*.safetensors.*"):
        left_over.unlink(missing_ok=True)
    found = [path for path in Path(folder).glob("snapshot-*.safetensors") if _NAME.fullmatch(path.name)]
    found.sort(key=lambda path: int(_NAME.fullmatch(path.name).group(1)))
    old = found[: max(len(found) - keep, 0)]
    for path in old:
        path.unlink(missing_ok=True)
    return old
