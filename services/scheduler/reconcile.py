"""What happens next in the queue: the desired status in the rows against what Ray shows.

A plain class: the store and the launcher are handed in, and a test drives it tick by tick. Rules: an attempt that Ray does
not know any more is lost, unless it was never seen running (then it is launched, once, by its id); a Ray that does not
answer changes nothing; a cancel or pause is first asked of the attempt, which stops at a step boundary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

ACTIVE = ("starting", "running", "pausing", "cancelling")
GRACE_S = 600.0
"""How long an attempt may take to stop by itself before it is ended from outside."""
MAX_ATTEMPTS_WITHOUT_PROGRESS = 3


class Launcher(Protocol):
    """Starts and observes attempts; ``services/scheduler/launcher.py`` does it with Ray Jobs."""

    def launch(self, attempt_id: str) -> None: ...

    def observe(self, attempt_id: str) -> str:
        """``missing``, ``alive``, ``ended``, or ``unreachable``."""
        ...

    def end(self, attempt_id: str) -> None: ...


class Reconciler:
    """One pass over all unfinished jobs per ``tick``."""

    def __init__(self, store, launcher: Launcher, *, epoch: Callable[[], int], max_running: int, clock=time.monotonic):
        self._store = store
        self._launcher = launcher
        self._epoch = epoch
        self._max_running = max_running
        self._clock = clock
        self._asked_since: dict[str, float] = {}

    def tick(self) -> None:
        active = self._store.jobs_in(ACTIVE)
        for job in active:
            self._advance(job)
        running = len(self._store.jobs_in(ACTIVE))
        while running < self._max_running and (job := self._store.next_queued()) is not None:
            self._start(job)
            running += 1

    def _start(self, job) -> None:
        if self._store.attempts_without_progress(job.id) >= MAX_ATTEMPTS_WITHOUT_PROGRESS:
            self._store.transition(
                job.id,
                "failed",
                epoch=self._epoch(),
                reason="attempts_exhausted",
                message=f"{MAX_ATTEMPTS_WITHOUT_PROGRESS} attempts in a row ended without a new checkpoint; the last said: {self._last_words(job)}",
            )
            return
        attempt = self._store.start_attempt(job.id, epoch=self._epoch())
        self._launcher.launch(attempt.id)

    def _last_words(self, job) -> str:
        attempts = self._store.list_attempts(job.id)
        return (attempts[-1].message if attempts else None) or "nothing"

    def _advance(self, job) -> None:
        attempts = self._store.list_attempts(job.id)
        attempt = attempts[-1] if attempts else None
        if attempt is None or attempt.ended_at is not None:
            self._requeue(job, "attempt_missing", "the job had no live attempt")
            return
        seen = self._launcher.observe(attempt.id)
        if seen == "unreachable":
            return
        if seen == "missing" and job.status == "starting":
            self._launcher.launch(attempt.id)
        elif seen in ("missing", "ended"):
            self._lost(job, attempt, seen)
        else:
            self._ask_to_stop(job, attempt)

    def _lost(self, job, attempt, seen: str) -> None:
        reason = "cluster_lost" if seen == "missing" else "driver_lost"
        message = (
            "the cluster no longer knows the attempt" if seen == "missing" else "the attempt's driver ended without a result"
        )
        # An attempt that was ended for a pause or a cancel did not fail, and must not count as one that did.
        exit_reason = reason if job.desired_status == "running" else job.desired_status
        self._store.end_attempt(attempt.id, epoch=self._epoch(), exit_reason=exit_reason, message=message)
        self._asked_since.pop(attempt.id, None)
        job = self._store.get_job(job.id)
        if job.status not in ACTIVE:
            return  # its driver had the last word between our two looks
        if job.desired_status == "cancelled":
            self._store.transition(job.id, "cancelled", epoch=self._epoch(), reason="cancelled", message="cancelled")
        elif job.desired_status == "paused":
            self._store.transition(job.id, "paused", epoch=self._epoch(), reason="paused", message=message)
        else:
            self._requeue(job, reason, message)

    def _requeue(self, job, reason: str, message: str) -> None:
        self._store.transition(job.id, "queued", epoch=self._epoch(), reason=reason, message=message)

    def _ask_to_stop(self, job, attempt) -> None:
        """The learner polls the desired status each step; here the status shows it, and patience ends."""
        wanted = {"cancelled": "cancelling", "paused": "pausing"}.get(job.desired_status)
        if wanted is None:
            self._asked_since.pop(attempt.id, None)
            return
        if job.status in ("starting", "running"):
            self._store.transition(
                job.id, wanted, epoch=self._epoch(), reason=f"{wanted}_requested", message=f"{wanted} at the next step"
            )
        since = self._asked_since.setdefault(attempt.id, self._clock())
        if job.cancel_mode == "now" or self._clock() - since > GRACE_S:
            self._launcher.end(attempt.id)
