"""Paths in a job file: relative ones are the sender's, and the service works in another folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def with_absolute_paths(spec: Mapping[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """A copy of a job file's content whose ``path`` of the model, of given checkpoints, of data set domains and of a method's
    models and recorded rollouts is absolute where it exists here.

    Anything that is not shaped like a job file is left as it is; the service says what is wrong with it.
    """
    base = folder or Path.cwd()
    copy = json.loads(json.dumps(spec, default=str))
    stages = copy.get("stages") if isinstance(copy, dict) else None
    evaluation = copy.get("evaluation") if isinstance(copy, dict) else None
    holders: list[Any] = [copy.get("model")] if isinstance(copy, dict) else []
    for stage in stages if isinstance(stages, list) else []:
        if isinstance(stage, dict):
            holders += [stage.get("domain"), *_domains(stage.get("domains")), *_objects(stage.get("method")), stage.get("policy")]
    if isinstance(evaluation, dict):
        holders += _domains(evaluation.get("domains"))
    for holder in holders:
        if isinstance(holder, dict) and isinstance(holder.get("path"), str) and not Path(holder["path"]).is_absolute():
            # a path that cannot be looked up here (too long, a NUL) is the service's to refuse
            with contextlib.suppress(OSError, ValueError):
                if (base / holder["path"]).exists():
                    holder["path"] = str((base / holder["path"]).resolve())
    return copy


def _domains(parts: Any) -> list[Any]:
    return [part.get("domain") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _objects(value: Any) -> list[dict[str, Any]]:
    """The value and everything in it that is an object."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return ([value] if isinstance(value, dict) else []) + [item for part in inside for item in _objects(part)]
