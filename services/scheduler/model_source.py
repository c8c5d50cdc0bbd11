"""Where the base model's files are: a local folder, or a snapshot of a Hugging Face repository at a pinned commit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import HoldfastError, StageError
from cluster.spec.job import JobSpec, ModelSpec, ResolvedStage, longest_sequence
from cluster.spec.teachers import ModelFolder, external_key, external_teachers
from services.jobs.given_policies import difference, folder_faults, given_sha256

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


def given_folders(stages: Sequence[ResolvedStage], resolved: dict[str, Any]) -> dict[str, str]:
    """The folder of every given stage's checkpoint, by ``external_key``. Downloads hub ids at the commit that submission pinned."""
    found = {key: str(folder) for key, folder in (resolved.get("policies") or {}).items()}
    revisions = resolved.get("policy_revisions") or {}
    for policy in (stage.policy for stage in stages if stage.policy is not None):
        key = external_key(policy)
        if key not in found:
            found[key] = str(local_folder(policy, {"model_revision": revisions.get(key)}))
    return found


def check_given(base: Path, given: Path, known_sha256: str | None) -> None:
    """A given checkpoint is still the one that was submitted, or, where it was downloaded since, is like the base model.

    Raises StageError ``policy_changed`` or ``policy_unusable``.
    """
    problems = folder_faults(given, str(given))
    if problems:
        raise StageError(problems[0][0], reason="policy_changed" if known_sha256 else "policy_unusable")
    if known_sha256 is None:
        different = difference(base, given)
        if different is not None:
            raise StageError(f"checkpoint {given} {different[0]}", reason="policy_unusable")
    elif given_sha256(given) != known_sha256:
        raise StageError(f"checkpoint {given} is not the one that was submitted (sha256 {known_sha256[:12]}...)", reason="policy_changed")


def embedding_folder(embedding: ModelFolder | None, resolved: dict[str, Any]) -> Path | None:
    """The folder of the sentence-embedding model that ``evaluation.response_drift`` names, as submission found it."""
    return None if embedding is None else local_folder(embedding, resolved.get("embedding") or {})


def max_model_len(job: JobSpec, folder: Path) -> int:
    """The longest sequence that any stage or evaluation can make, never above what the model was built for."""
    limit = json.loads((folder / "config.json").read_text()).get("max_position_embeddings", 1 << 30)
    return min(limit, longest_sequence(job))
