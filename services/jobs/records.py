"""What the store gives back: frozen records, times as RFC 3339 text in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    index: int
    name: str
    status: str
    step: int
    total_steps: int
    message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    id: str
    name: str
    status: str
    desired_status: str
    cancel_mode: str
    reason: str | None
    message: str | None
    version: int
    spec: dict[str, Any]
    spec_hash: str
    resolved: dict[str, Any]
    labels: dict[str, str]
    stages: tuple[StageRecord, ...]
    created_at: str
    started_at: str | None
    finished_at: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    id: str
    job_id: str
    number: int
    started_at: str
    ended_at: str | None
    exit_reason: str | None
    message: str | None
    incarnations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    id: str
    job_id: str
    seq: int
    kind: str
    level: str
    stage: str | None
    message: str
    data: dict[str, Any]
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRecord:
    id: str
    job_id: str
    attempt_id: str
    stage_index: int
    step: int
    global_step: int
    path: str
    manifest_sha256: str
    kind: str
    policy_version: int
    state: str
    created_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    job_id: str
    row: int
    stage_index: int | None
    step: int
    domain: str
    at: str
    mean: float
    num_problems: int
    truncation_rate: float
    mean_tokens: float
    scores: list[float]
    created_at: str
    problems_digest: str | None = None
    """Of problems, seeds, sampling and verifier; None for rows of before it was kept."""
    samples_per_problem: int | None = None
    passed: list[int] | None = None
    """Per problem, how many of the samples passed."""
    measured_on: str | None = None
    """Device and dtype of the engines, such as ``cpu/float32``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """A study without its members."""

    id: str
    name: str
    spec: dict[str, Any]
    """The study file as it was sent; defaults are not filled in, so that it expands to the same members again."""
    spec_hash: str
    labels: dict[str, str]
    created_at: str
    counts: dict[str, int]
    """Members by status."""
    started_at: str | None
    finished_at: str | None
    """Of the member that ended last, where all have ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRecord:
    """One run of a study and where it stands."""

    position: int
    arm: str
    order: str
    seed: int
    digest: str
    job_id: str | None
    """The newest job of this member; None where a record of another machine stands for it."""
    status: str
    """The job's; ``succeeded`` for one with a record."""
    reason: str | None
    message: str | None
    started_at: str | None
    finished_at: str | None
    steps_done: int
    steps_total: int
    recorded: bool
    """Whether a record that came with the submission stands for it."""
    model_sha256: str | None = None
    """Of the base model's folder as admission found it; None for a hub id and for one with a record."""
    inputs: dict[str, str] | None = None
    """Content hashes of what else its job reads (``input_hashes``); None where they were not kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyPlace:
    """Which study and arm a job belongs to."""

    study_id: str
    study: str
    arm: str
    order: str
    seed: int
    created_at: str
