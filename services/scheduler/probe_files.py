"""Completions of the probe prompts in files of the run folder, so that a later incarnation reads what an earlier one sampled.

Invariants: a file is whole or not there; it says which problems its completions answer (``problems_digest``), and completions of other
problems are not read. Arrays only, no pickle.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from services.evaluation.evaluator import FirstCompletions

PROBES_FILE = "probe_completions.npz"


def write_probes(path: Path, domains: Mapping[str, tuple[str, FirstCompletions]]) -> None:
    """``domains``: name -> (problems digest, completions)."""
    arrays: dict[str, np.ndarray] = {}
    for name, (digest, first) in domains.items():
        arrays[f"{name}/digest"] = np.array(digest)
        arrays[f"{name}/lengths"] = np.array([len(ids) for ids in first.token_ids], dtype=np.int64)
        arrays[f"{name}/token_ids"] = np.concatenate(first.token_ids).astype(np.int32)
        arrays[f"{name}/cut"] = np.asarray(first.cut, dtype=bool)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)


def read_probes(path: Path, digests: Mapping[str, str]) -> dict[str, FirstCompletions]:
    """Those of ``digests``' domains (name -> problems digest) that the file has; none where there is no file or a damaged one."""
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _read(arrays, name) for name, digest in digests.items() if _digest(arrays, name) == digest}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return {}


def _digest(arrays: Mapping[str, np.ndarray], name: str) -> str | None:
    return str(arrays[f"{name}/digest"]) if f"{name}/digest" in arrays else None


def _read(arrays: Mapping[str, np.ndarray], name: str) -> FirstCompletions:
    ends = np.cumsum(arrays[f"{name}/lengths"])
    return FirstCompletions(tuple(np.split(arrays[f"{name}/token_ids"], ends[:-1])), arrays[f"{name}/cut"])
