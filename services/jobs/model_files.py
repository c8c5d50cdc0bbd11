"""What a model folder holds, found without loading it: configuration, tokenizer, the headers of its weights, its hash.

Invariant: a folder that could execute something when it is loaded is refused: pickles, Python files, remote-code entries.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster.spec.job import ModelSpec
from services.jobs.faults import Fault, show

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
MAX_HEADER_BYTES = 100_000_000
HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the other checks need to know; None where the configuration does not say."""

    vocabulary: int | None
    max_positions: int | None


def check_model(model: ModelSpec, base_dir: Path) -> tuple[list[Fault], ModelFacts | None, dict[str, Any]]:
    """Faults of the model, its facts, and what goes into ``resolved``."""
    if model.path is None:
        return _check_hub_model(model)
    folder = base_dir / model.path
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        return [Fault("/model/path", f"model folder {show(model.path)} {kind}", "model_not_found")], None, {}
    if not (folder / "config.json").is_file():
        # said before anything is walked: the path may be any folder of this machine, even the root
        return [_fault(f"{model.path} has no config.json", "model_incomplete")], None, {"model_path": str(folder.resolve())}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    faults = [_fault(f"{model.path} has no {name}", "model_incomplete") for name in ("tokenizer.json",) if not (folder / name).is_file()]
    if not any(path.suffix == ".safetensors" for path in files):
        faults.append(_fault(f"{model.path} has no *.safetensors file; weights in other formats are not read", "model_incomplete"))
    for path in files:
        faults += _check_file(path, str(path.relative_to(folder)))
    faults += _check_index(folder)
    config = read_json(folder / "config.json")
    facts = _facts(config) if config is not None else None
    resolved: dict[str, Any] = {"model_path": str(folder.resolve())}
    if not faults:
        resolved["model_sha256"] = folder_sha256(folder)
    if facts is not None:
        resolved |= {"vocabulary_size": facts.vocabulary, "max_position_embeddings": facts.max_positions}
    return faults, facts, resolved


def _check_file(path: Path, name: str) -> list[Fault]:
    """One file of the folder."""
    if path.suffix in PICKLES:
        return [_fault(f"{name} can hold a pickle, which executes code when it is loaded; remove it, weights are read from safetensors", "pickle")]
    if path.suffix == ".py":
        return [_fault(f"{name} is code that came with the model; it is never executed, remove it", "remote_code")]
    if path.suffix == ".safetensors":
        problem = safetensors_problem(path)
        return [_fault(f"{name} {problem}", "model_damaged")] if problem else []
    if path.suffix == ".json":
        content = read_json(path)
        if content is None:
            return [_fault(f"{name} is not a JSON object", "model_damaged")]
        if "auto_map" in content:
            return [_fault(f"{name} asks for remote code (auto_map); only architectures that transformers has are trained", "remote_code")]
    return []


def _check_index(folder: Path) -> list[Fault]:
    """Every shard that the index names must be there."""
    index = read_json(folder / "model.safetensors.index.json") if (folder / "model.safetensors.index.json").is_file() else None
    weight_map = index.get("weight_map") if index else None
    shards = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    return [_fault(f"{name} is named by model.safetensors.index.json and missing", "model_incomplete") for name in shards if not (folder / name).is_file()]


def safetensors_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file by its header and its size, or None."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else None
        if length is None or length > min(size - 8, MAX_HEADER_BYTES):
            return "is not a whole safetensors file"
        try:
            header = json.loads(file.read(length))
            ends = [_end(entry) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return "has a safetensors header that cannot be read"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"has {size} bytes, its header speaks of {expected}"


def _end(entry: Any) -> int:
    """Where a tensor of a safetensors header ends. Raises ``ValueError`` (or what a lookup raises) for an entry that is none."""
    dtype, shape, end = entry["dtype"], entry["shape"], entry["data_offsets"][1]
    if not isinstance(dtype, str) or not isinstance(shape, list) or not all(isinstance(number, int) for number in (*shape, end)):
        raise ValueError("no tensor")
    return end


def safetensors_header(path: Path) -> dict[str, Any]:
    """Names, dtypes and shapes of a file that ``safetensors_problem`` finds nothing wrong with."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length))


def folder_sha256(folder: Path) -> str:
    """One hash over the names and contents of all files of a folder, whatever its place."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder)}\0{file_sha256(path)}\n".encode())
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's content; remembered for as long as the file looks the same."""
    status = path.stat()
    return _file_sha256(str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=4096)
def _file_sha256(path: str, size: int, modified_ns: int, inode: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(config: dict[str, Any]) -> ModelFacts:
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    vocabulary, positions = text.get("vocab_size"), text.get("max_position_embeddings")
    return ModelFacts(vocabulary if isinstance(vocabulary, int) else None, positions if isinstance(positions, int) else None)


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _check_hub_model(model: ModelSpec) -> tuple[list[Fault], ModelFacts | None, dict[str, Any]]:
    """Pin an id to the commit that its revision is now; file names are checked there, contents after the download."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(model.id, revision=model.revision, timeout=HUB_TIMEOUT_S)
    except Exception as error:  # the hub client raises many kinds; all mean that the id could not be pinned
        detail = f"model {show(model.id)} at {model.revision or 'main'} could not be looked up ({type(error).__name__}: {_first_line(error)}); a local folder (path) needs no network"
        return [Fault("/model/id", detail, "model_unreachable")], None, {}
    names = [sibling.rfilename for sibling in info.siblings or ()]
    faults = []
    if not any(name.endswith(".safetensors") for name in names):
        faults.append(Fault("/model/id", f"model {show(model.id)} has no *.safetensors file; weights in other formats are not read", "model_incomplete"))
    if isinstance(info.config, dict) and "auto_map" in info.config:
        faults.append(Fault("/model/id", f"model {show(model.id)} needs remote code (auto_map), which is never executed", "remote_code"))
    return faults, None, {"model_revision": info.sha}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _fault(detail: str, code: str) -> Fault:
    return Fault("/model/path", detail, code)
