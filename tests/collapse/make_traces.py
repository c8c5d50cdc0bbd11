"""Turn a finished job, whose stage recorded its rollouts, into a trace for these tests; see traces/README.md.

``python tests/collapse/make_traces.py METRICS.json STAGE ROLLOUTS_FOLDER TOKENIZER.json OUT.json.gz`` with METRICS.json as
``HoldfastClient.metrics(job)`` gives it.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from safetensors import safe_open

KEPT = ("rollout/", "policy/entropy_nats", "teacher/", "batch/", "gradient/norm", "loss/")
SPECIAL = ("<|", "<unk>")


def steps_of(metrics: dict, stage: str) -> dict[int, dict[str, float]]:
    """Per step the metrics that a detector may read, to six digits."""
    found: dict[int, dict[str, float]] = {}
    for point in metrics["data"]:
        key = point["key"]
        if point["stage"] == stage and key.startswith(KEPT) and not key.startswith("gradient/norm_of"):
            found.setdefault(point["step"], {})[key] = float(f"{point['value']:.6g}")
    return {step: values for step, values in found.items() if "loss/total" in values}


def completions_of(folder: Path, index: int) -> list[list[str]]:
    """Per group its completions, each as token ids with blanks between."""
    with safe_open(folder / f"step-{index:06d}.safetensors", "np") as file:
        ids, lengths, sizes = (file.get_tensor(name).tolist() for name in ("token_ids", "lengths", "group_sizes"))
    place, flat = 0, []
    for length in lengths:
        flat.append(" ".join(map(str, ids[place : place + length])))
        place += length
    groups, first = [], 0
    for size in sizes:
        groups.append(flat[first : first + size])
        first += size
    return groups


def main(metrics: str, stage: str, rollouts: str, tokenizer: str, out: str) -> None:
    steps = steps_of(json.loads(Path(metrics).read_text()), stage)
    vocabulary = json.loads(Path(tokenizer).read_text())["model"]["vocab"]
    by_id = {number: word for word, number in vocabulary.items()}
    words = [by_id.get(number, "") for number in range(max(by_id) + 1)]
    trace = {
        "vocabulary": ["" if word.startswith(SPECIAL) else word for word in words],
        "steps": [
            {"step": step, "metrics": steps[step], "groups": completions_of(Path(rollouts), step - 1)} for step in sorted(steps)
        ],
    }
    with gzip.GzipFile(out, "wb", mtime=0) as file:
        file.write(json.dumps(trace, separators=(",", ":")).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
