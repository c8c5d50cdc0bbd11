"""The small model folder and the job files that the tests of admission share."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from services.jobs.admission import check_environment
from services.jobs.faults import parse_job

CPU = {"cpus": 16.0, "gpus": 0.0}


def tensors(*, cut: int = 0) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    whole = struct.pack("<Q", len(header)) + header + bytes(8)
    return whole[: len(whole) - cut]


def make_home(folder: Path) -> Path:
    """A folder with a model of 128 ids and 256 positions, and a data set of 60 rows."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"vocab_size": 128, "max_position_embeddings": 256}))
    (model / "tokenizer.json").write_text("{}")
    (model / "model.safetensors").write_bytes(tensors())
    rows = [json.dumps({"problem": f"{number}+1", "answer": str(number + 1)}) for number in range(60)]
    (folder / "data.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def job(*, stages=None, **changes):
    stage = {"name": "s", "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}}
    content = {
        "name": "x",
        "model": {"path": "model"},
        "defaults": {"max_prompt_tokens": 64, "sampling": {"max_tokens": 32}},
        "stages": stages or [stage],
    }
    return parse_job(content | changes)


def check(home, spec, cluster=CPU):
    found, resolved = check_environment(spec, base_dir=home, cluster=cluster)
    return {(fault.pointer, fault.code): fault.detail for fault in found}, resolved


def stage(name="s", **changes) -> dict:
    return {"name": name, "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}} | changes
