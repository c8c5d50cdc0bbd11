"""The teacher's part of a checkpoint: one safetensors file per weight set and a JSON record, written last.

Invariant: what is read back has the exact float32 weights and the counts that were written, or it is a CheckpointError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from services.teacher.weights import PolicyWeights
from services.weights.checkpoints import CheckpointError
from trainer import state_files

RECORD_FILE = "teacher.json"
STATE_FORMAT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRecord:
    """The counts, and which sets there are."""

    anchored: bool
    teacher_version: int
    follows: int
    sets: tuple[str, ...]
    reference_version: int | None
    """None where there is no reference."""
    format: int = STATE_FORMAT


def weights_file(folder: Path, name: str) -> Path:
    """``own/<domain>`` becomes ``own-<domain>.safetensors``."""
    return folder / f"{name.replace('/', '-')}.safetensors"


def write_state(folder: Path, record: TeacherRecord, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, state in states.items():
        tensors = {key: tensor.detach().to(device="cpu", dtype=torch.float32).contiguous() for key, tensor in state.items()}
        state_files.write_tensors(weights_file(folder, name), tensors)
    state_files.write_json(folder / RECORD_FILE, asdict(record))


def read_state(folder: Path, names_of, policy: PolicyWeights) -> tuple[TeacherRecord, dict[str, dict[str, Tensor]]]:
    """The record, and the states of the sets that ``names_of(record)`` names; nothing is changed by a folder that does not fit."""
    try:
        content = json.loads((folder / RECORD_FILE).read_text())
        if content.get("format") != STATE_FORMAT:
            found = content.get("format")
            raise CheckpointError(f"the teacher's state in {folder} is of format {found}, this version reads {STATE_FORMAT}")
        record = TeacherRecord(**{**content, "sets": tuple(content["sets"])})
        states = {name: dict(state_files.read_tensors(weights_file(folder, name))) for name in names_of(record)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the teacher's state in {folder} cannot be read: {error}") from error
    for name, state in states.items():
        if not policy.fits(state):
            raise CheckpointError(f"the teacher's state in {folder} is of another model: {weights_file(folder, name).name}")
    return record, states
