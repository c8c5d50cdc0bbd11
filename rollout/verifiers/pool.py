"""Verifiers in separate, killable processes with a deadline for every single completion.

Invariant: one verdict per job, in order. A verifier that raises, hangs, or ends its process costs its own job alone,
whose verdict then has ``error`` set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cluster.messages import Problem, Verdict
from rollout.domains.base import Domain
from rollout.processes.pool import LimitedPool

Job = tuple[Domain, Problem, str]


class VerifierPool(LimitedPool):
    """``num_processes`` verifier processes. ``memory_bytes`` bounds the address space of each (RLIMIT_AS)."""

    unavailable = "verifier_unavailable"

    def __init__(self, num_processes: int = 1, deadline_s: float = 10.0, *, memory_bytes: int | None = None):
        super().__init__("rollout.verifiers.work", num_processes, deadline_s, memory_bytes=memory_bytes)

    def verify(self, jobs: Sequence[Job]) -> list[Verdict]:
        """The verdicts of ``jobs``, in order. Raises ``HoldfastError`` ``verifier_unavailable`` if no process starts."""
        return [_checked(answer, job) for answer, job in zip(self.run(jobs), jobs, strict=True)]


def _checked(answer: dict[str, Any], job: Job) -> Verdict:
    """What a process answered, as a verdict; an answer out of range is the verifier's failure."""
    score, error = answer.get("score"), answer.get("error")
    if error is not None:
        return _failed(job, str(error))
    if not isinstance(score, int | float) or not math.isfinite(score) or not 0.0 <= score <= 1.0:
        return _failed(job, f"gave the score {score}; allowed is 0 to 1")
    return Verdict(
        score=float(score), passed=answer["passed"] is True, feedback=str(answer["feedback"]), details=dict(answer["details"])
    )


def _failed(job: Job, what: str) -> Verdict:
    return Verdict(score=0.0, passed=False, error=f"the verifier of {job[1].problem_id} {what}")
