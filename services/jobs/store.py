"""The job store: everything that must survive a crash, behind one class.

Every change of a job is one transaction that also grows the row's version. Writes of the scheduler carry the epoch of its
lease, writes of an attempt the attempt's id; a replaced writer is told so by ``FencedError`` and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from services.jobs.attempt_rows import AttemptRows
from services.jobs.connection import Database
from services.jobs.event_rows import EventRows
from services.jobs.job_rows import JobRows
from services.jobs.key_rows import KeyRows
from services.jobs.lease_rows import LeaseRows
from services.jobs.result_rows import ResultRows
from services.jobs.study_rows import StudyRows


class JobStore(JobRows, AttemptRows, EventRows, ResultRows, StudyRows, KeyRows, LeaseRows):
    """One file per noun; the methods are theirs."""

    def __init__(self, url: str, *, lease_clock: Callable[[], float] | None = None):
        self.database = Database(url, lease_clock=lease_clock)

    def migrate(self) -> None:
        self.database.migrate()

    def ping(self) -> None:
        """Raises where the database does not answer or its schema is not the newest."""
        self.database.ping()

    def close(self) -> None:
        self.database.close()
