"""Matrices with a planted spectrum and planted subspaces, and folders that hold them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

NAME = "model.layers.0.mlp.up_proj.weight"


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64)).Q


def planted(rows: int, columns: int, values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """U diag(values) V^T with U, V."""
    left, right = orthonormal(rows, len(values), seed), orthonormal(columns, len(values), seed + 1)
    return left * values @ right.T, left, right


def rotated(basis: Tensor, inside: int, outside: int, degrees: float) -> Tensor:
    """The basis with one column of the leading span turned towards one of the others, in their plane."""
    turned = basis.clone()
    angle = math.radians(degrees)
    turned[:, inside] = math.cos(angle) * basis[:, inside] + math.sin(angle) * basis[:, outside]
    turned[:, outside] = math.cos(angle) * basis[:, outside] - math.sin(angle) * basis[:, inside]
    return turned


def folder(path: Path, tensors: dict[str, Tensor], config: dict | None = None) -> Path:
    path.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


def sharded(path: Path, tensors: dict[str, Tensor], num_shards: int) -> Path:
    path.mkdir(parents=True)
    names, weight_map = sorted(tensors), {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[shard::num_shards]}
        save_file(part, path / file)
        weight_map |= dict.fromkeys(part, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path
