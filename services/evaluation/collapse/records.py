"""What the collapse watch says. Invariant: every field is a JSON value, so that a warning is an event as it stands."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["warning", "critical"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a detector saw at one step."""

    level: float
    """1 is the detector's own threshold; above it the sign is there."""
    message: str
    evidence: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseWarning:
    """The begin (``raised``) or the end of one episode of one sign."""

    code: str
    severity: Severity
    raised: bool
    message: str
    evidence: dict[str, Any]
    step: int
    stage: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Of one step."""

    metrics: dict[str, float]
    warnings: list[CollapseWarning]
