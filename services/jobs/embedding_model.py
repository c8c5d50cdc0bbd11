"""The sentence-embedding model that response drift may be measured with: looked at by the checks of the base model.

Invariant: a folder that could execute something when it is loaded is refused, as for every model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.spec.job import JobSpec, ModelSpec
from services.jobs.faults import Fault, pointer
from services.jobs.model_files import check_model

LIST_OF_MODULES = "modules.json is not a JSON object"
"""How a sentence-transformers folder says which layers follow its encoder; it is never read here."""


def check_embedding_model(spec: JobSpec, base_dir: Path) -> tuple[list[Fault], dict[str, Any]]:
    """Faults of ``evaluation.response_drift.embedding``, and for the row ``embedding``: its ``model_path`` or ``model_revision``."""
    drift = spec.evaluation.response_drift
    if drift.embedding is None or drift.when == "never":
        return [], {}
    model = ModelSpec(path=drift.embedding.path, id=drift.embedding.id, revision=drift.embedding.revision)
    found, _, known = check_model(model, base_dir)
    at = pointer(("evaluation", "response_drift", "embedding", "path" if model.path is not None else "id"))
    faults = [replace(fault, pointer=at, detail=f"embedding model: {fault.detail}") for fault in found if fault.detail != LIST_OF_MODULES]
    kept = {name: known[name] for name in ("model_path", "model_sha256", "model_revision") if name in known}
    return faults, {"embedding": kept} if kept else {}
