"""Where the base model's files are: a local folder, or a snapshot of a Hugging Face repository at a pinned commit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import HoldfastError
from cluster.spec.job import JobSpec, ModelSpec, ResolvedStage, longest_sequence
from cluster.spec.teachers import ModelFolder, external_key, external_teachers

WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
"""Weights, configuration and tokenizer; nothing that executes when it is loaded."""


class ModelUnavailable(HoldfastError):
    """The model's files cannot be had."""

    reason = "model_unavailable"


def local_folder(model: ModelSpec | ModelFolder, resolved: dict[str, Any]) -> Path:
    """A folder with the model's files. Downloads a hub id at the commit that submission pinned."""
    if model.path is not None:
        return Path(resolved.get("model_path") or model.path).absolute()
    from huggingface_hub import snapshot_download

    revision = resolved.get("model_revision") or model.revision
    try:
        return Path(snapshot_download(model.id, revision=revision, allow_patterns=WANTED_FILES))
    except Exception as error:  # the hub client raises many kinds; all mean that there are no files
        raise ModelUnavailable(f"model {model.id!r} at {revision!r} could not be fetched: {error}") from error


def external_folders(stages: Sequence[ResolvedStage], resolved: dict[str, Any]) -> dict[str, str]:
    """The folder of every external teacher and of every initial blend, by ``external_key`` or path as the job file has it.

    Downloads hub ids at the commit that submission pinned.
    """
    found: dict[str, str] = {key: str(folder) for key, folder in (resolved.get("teachers") or {}).items() if folder}
    revisions = resolved.get("teacher_revisions") or {}
    for external in (item for stage in stages for item in external_teachers(stage.composition.teacher)):
        key = external_key(external)
        if key not in found:
            found[key] = str(local_folder(external, {"model_revision": revisions.get(key)}))
    return found


def max_model_len(job: JobSpec, folder: Path) -> int:
    """The longest sequence that any stage or evaluation can make, never above what the model was built for."""
    limit = json.loads((folder / "config.json").read_text()).get("max_position_embeddings", 1 << 30)
    return min(limit, longest_sequence(job))
