"""What the cluster has, as the scheduler last wrote it to ``cluster.json``. The API itself never asks Ray."""

from __future__ import annotations

import json
from typing import Any

from cluster.settings import Settings

STALE_AFTER_S = 90.0


def cluster_file(settings: Settings) -> dict[str, Any] | None:
    """The file's content (``cpus``, ``gpus``, ``nodes``), or None before the first one was written."""
    try:
        content = json.loads((settings.home / "cluster.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def cluster_resources(settings: Settings) -> dict[str, float] | None:
    """Totals by Ray's names, ``{"CPU": ..., "GPU": ...}``, or None where no cluster has reported."""
    content = cluster_file(settings)
    return None if content is None else {"CPU": float(content.get("cpus", 0.0)), "GPU": float(content.get("gpus", 0.0))}
