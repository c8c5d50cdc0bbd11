"""The runs above a member's: its study's and its arm's, made once and found again by their tags."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from services.tracking.mlflow_calls import MlflowCalls


def study_run(calls: MlflowCalls, place: Any) -> str:
    """``place`` has study_id, study (its name) and created_at."""
    return calls.study_run(place.study_id, place.study, milliseconds(place.created_at))


def arm_run(calls: MlflowCalls, place: Any) -> str:
    """The run of the place's ``arm``, with its study's above it."""
    return calls.arm_run(place.study_id, place.arm, study_run(calls, place), milliseconds(place.created_at))


def milliseconds(text: str) -> int:
    """Of an RFC 3339 time, since the epoch."""
    return int(datetime.fromisoformat(text).timestamp() * 1000)
