"""Resumable checkpoints on disk: written aside, hashed, fsynced, renamed; committed by one store transaction elsewhere.

A folder that has no MANIFEST.json, or whose files do not match it, is not a checkpoint. No pickle: safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from cluster.errors import HoldfastError

MANIFEST = "MANIFEST.json"


class CheckpointError(HoldfastError):
    """A checkpoint that cannot be read back as it was written (``checkpoint_damaged``)."""

    reason = "checkpoint_damaged"


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def staging_folder(root: Path, checkpoint_id: str) -> Path:
    """An empty folder that ``seal`` will turn into the checkpoint."""
    folder = root / f".tmp-{checkpoint_id}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def seal(staged: Path, final: Path, *, record: dict) -> str:
    """Hash and fsync every file, write the manifest, rename. Returns the manifest's sha256."""
    files = {}
    for path in sorted(p for p in staged.rglob("*") if p.is_file()):
        _fsync(path)
        files[str(path.relative_to(staged))] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    manifest = staged / MANIFEST
    manifest.write_text(json.dumps({"record": record, "files": files}, indent=1, sort_keys=True))
    _fsync(manifest)
    _fsync(staged)
    digest = file_sha256(manifest)
    os.rename(staged, final)
    _fsync(final.parent)
    return digest


def verify(folder: Path, manifest_sha256: str) -> dict:
    """Check every byte against the manifest and return the record. Raises ``CheckpointError`` naming what is wrong."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{folder.name} has no {MANIFEST}")
    if file_sha256(manifest) != manifest_sha256:
        raise CheckpointError(f"the manifest of {folder.name} is not the one that was committed")
    content = json.loads(manifest.read_text())
    for name, entry in content["files"].items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{folder.name} lacks {name}")
        if path.stat().st_size != entry["bytes"] or file_sha256(path) != entry["sha256"]:
            raise CheckpointError(f"{name} of {folder.name} was changed after it was written")
    return content["record"]


def prune(root: Path, keep: Iterable[str]) -> list[str]:
    """Remove every checkpoint folder and left-over below ``root`` whose id is not in ``keep``; returns the removed ids."""
    kept, removed = set(keep), []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.is_dir() and folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return removed


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
