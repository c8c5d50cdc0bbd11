"""Turn the logs of jobs that did not record their rollouts into one file of metrics for these tests; see traces/README.md.

``python -m tests.collapse.make_metric_traces OUT.json.gz RUN_FOLDER...``, the folders named as the runs shall be.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from services.evaluation.collapse.watch import FOLLOWED


def stages_of(folder: Path) -> dict[str, list[list]]:
    """Stage -> [step, metrics that a detector reads, to five digits], of the last time that each step was done."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    with open(folder / "log.jsonl") as lines:
        for entry in map(json.loads, lines):
            if entry["kind"] == "metrics" and entry["stage"] and "loss/total" in entry["values"]:
                values = {name: float(f"{entry['values'][name]:.5g}") for name in FOLLOWED if entry["values"].get(name) is not None}
                found.setdefault(entry["stage"], {})[entry["step"]] = values
    return {stage: [[step, steps[step]] for step in sorted(steps)] for stage, steps in found.items()}


def main(out: str, *folders: str) -> None:
    runs = {Path(folder).name: stages_of(Path(folder)) for folder in folders}
    with gzip.GzipFile(out, "wb", mtime=0) as file:
        file.write(json.dumps(runs, separators=(",", ":")).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
