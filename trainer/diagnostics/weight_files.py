"""Tensors of a Hugging Face folder (one safetensors file, or shards with an index), of a job's checkpoint (its policy) or of one
file, one at a time.

Invariant: a tensor is mapped from its file when asked for and nothing is kept, so that memory does not grow with the model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
POLICY_NAME, STATE_NAME = "policy.safetensors", "state.json"
"""Of a checkpoint (trainer/state_files.py), whose other tensors are moments and random state; state.json says that it is whole."""
ALLOWED = f"a Hugging Face folder, a checkpoint folder of a job ({POLICY_NAME} and {STATE_NAME}) and a single .safetensors file"
SHOWN_FILES = 3
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


class DriftRefused(ValueError):
    """Two sets of weights that cannot be compared; ``field`` says what of them, ``detail`` why not."""

    def __init__(self, field: str, detail: str):
        super().__init__(f"{field}: {detail}")
        self.field = field
        self.detail = detail


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Where each tensor of one set of weights lies, with the shapes that the headers state."""

    path: Path
    files: dict[str, Path]
    shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any] = field(default_factory=dict)
    """config.json of a folder; empty for a file and for a checkpoint, which has none."""

    def read(self, name: str) -> Tensor:
        """One tensor in the dtype it is stored in, mapped: pages are read when touched and go with the tensor."""
        with safe_open(self.files[name], framework="pt") as handle:
            return handle.get_tensor(name)


def open_weights(path: Path) -> WeightFiles:
    """Read the headers of a folder or file. Raises DriftRefused where it holds no weights that can be compared."""
    path = Path(path)
    if path.is_dir():
        found = _shards(path)
        config = _json_object(path / "config.json") if (path / "config.json").is_file() else {}
    elif path.is_file():
        found, config = [path], {}
    else:
        raise DriftRefused("path", f"{path} is neither a folder nor a file")
    files: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in found:
        for name, shape in _header(file).items():
            if name in files:
                raise DriftRefused("tensor", f"{name} lies in two files of {path}: {files[name].name} and {file.name}")
            files[name], shapes[name] = file, shape
    if not files:
        raise DriftRefused("path", f"{path} holds no tensors")
    return WeightFiles(path, files, shapes, config)


def _shards(folder: Path) -> list[Path]:
    """The safetensors files of a folder: those that the index names, else the model's, else a checkpoint's policy, else the only one."""
    if (folder / INDEX_NAME).is_file():
        names = _json_object(folder / INDEX_NAME).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise DriftRefused(INDEX_NAME, f"{folder} has an index without a weight_map of file names")
        shards = sorted(set(names.values()))
        for shard in shards:
            if Path(shard).name != shard or not (folder / shard).is_file():
                raise DriftRefused(INDEX_NAME, f"{folder} has no file {shard!r}, which its index names")
        lost = sorted(set(names) - {name for shard in shards for name in _header(folder / shard)})
        if lost:
            raise DriftRefused(INDEX_NAME, f"{folder}: the index names {', '.join(lost[:3])}, which no shard holds")
        return [folder / shard for shard in shards]
    found = sorted(folder.glob("*.safetensors"))
    if (folder / "model.safetensors") in found:
        return [folder / "model.safetensors"]
    if (folder / POLICY_NAME) in found and (folder / STATE_NAME).is_file():
        return [folder / POLICY_NAME]
    if len(found) != 1:
        raise DriftRefused("path", f"{folder} holds {_named(found)}; allowed are {ALLOWED}")
    return found


def _named(found: list[Path]) -> str:
    if not found:
        return "no safetensors file"
    more = f" and {len(found) - SHOWN_FILES} more" if len(found) > SHOWN_FILES else ""
    return f"{len(found)} safetensors files ({', '.join(file.name for file in found[:SHOWN_FILES])}{more}) and no {INDEX_NAME}"


def _header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one file; refuses what is not a float (indices, quantised weights)."""
    shapes = {}
    try:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118, a handle is no mapping
                part = handle.get_slice(name)
                if part.get_dtype() not in FLOAT_DTYPES:
                    raise DriftRefused(
                        "dtype", f"{name} of {file} is {part.get_dtype()}; drift needs one of {', '.join(FLOAT_DTYPES)}"
                    )
                shapes[name] = tuple(part.get_shape())
    except (SafetensorError, OSError) as error:
        raise DriftRefused("path", f"{file} is not a safetensors file: {error}") from None
    return shapes


def _json_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DriftRefused(path.name, f"{path} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise DriftRefused(path.name, f"{path} holds no JSON object")
    return found
