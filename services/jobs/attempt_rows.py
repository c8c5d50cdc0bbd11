"""Attempts: the tries at a job. Only the newest one that has not ended may write."""

from __future__ import annotations

from sqlalchemy import Connection, func, insert, select, update

from cluster.errors import FencedError, NotFound
from services.jobs.connection import Database, clean_text, now_text
from services.jobs.event_rows import add_event
from services.jobs.ids import new_id
from services.jobs.job_rows import read_job, set_status, touch
from services.jobs.lease_rows import check_epoch
from services.jobs.records import AttemptRecord, JobRecord
from services.jobs.states import settle
from services.jobs.tables import attempts, jobs, stages

COLUMNS = tuple(attempts.c[name] for name in AttemptRecord.__slots__)
OUTCOMES = ("succeeded", "failed", "paused", "cancelled", "lost")


class AttemptRows:
    """Part of ``JobStore``."""

    database: Database

    # -- the scheduler's side ----------------------------------------------------------------------------------------

    def start_attempt(self, job_id: str, *, epoch: int) -> AttemptRecord:
        """A new attempt; the job is ``starting``. The attempt's id is the submission id of its Ray job."""
        with self.database.write() as connection:
            check_epoch(connection, epoch)
            job = read_job(connection, job_id, lock=True)
            number = connection.execute(select(func.count()).select_from(attempts).where(attempts.c.job_id == job_id)).scalar_one() + 1
            attempt_id = new_id("att")
            connection.execute(
                insert(attempts).values(id=attempt_id, job_id=job_id, number=number, started_at=now_text(), incarnations=0, progressed=0)
            )
            set_status(connection, job, "starting", reason=None, message=f"attempt {number}")
            return _attempt(connection, attempt_id)

    def end_attempt(self, attempt_id: str, *, epoch: int, exit_reason: str, message: str | None = None) -> None:
        """Close an attempt from outside; the job's own state is changed by ``transition``. One that has ended stays as it is."""
        with self.database.write() as connection:
            check_epoch(connection, epoch)
            job = read_job(connection, _attempt(connection, attempt_id).job_id, lock=True)
            if _attempt(connection, attempt_id).ended_at is None:
                _end(connection, attempt_id, exit_reason, message)
                data = {"reason": exit_reason, "attempt": attempt_id}
                add_event(connection, job.id, kind="attempt.ended", level="warning", message=message or exit_reason, data=data)

    def list_attempts(self, job_id: str) -> list[AttemptRecord]:
        query = select(*COLUMNS).where(attempts.c.job_id == job_id).order_by(attempts.c.number)
        with self.database.read() as connection:
            return [AttemptRecord(**row) for row in connection.execute(query).mappings()]

    def attempts_without_progress(self, job_id: str) -> int:
        """Ended attempts since the last one that committed a checkpoint; a user's pause does not count."""
        query = select(attempts.c.progressed, attempts.c.exit_reason).where(attempts.c.job_id == job_id).order_by(attempts.c.number.desc())
        count = 0
        with self.database.read() as connection:
            for row in connection.execute(query):
                if row.progressed:
                    break
                count += row.exit_reason not in (None, "paused", "cluster_lost")
        return count

    # -- the attempt's side ------------------------------------------------------------------------------------------

    def job_of_attempt(self, attempt_id: str) -> JobRecord:
        with self.database.read() as connection:
            return read_job(connection, _attempt(connection, attempt_id).job_id)

    def mark_running(self, attempt_id: str) -> None:
        with self.database.write() as connection:
            job = live_job(connection, attempt_id)
            if job.status == "starting":
                set_status(connection, job, "running", reason=None, message=None)

    def begin_incarnation(self, attempt_id: str) -> int:
        """A number that grows for ever per job; the high bits of publication ids."""
        with self.database.write() as connection:
            job = live_job(connection, attempt_id)
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(incarnations=jobs.c.incarnations + 1))
            connection.execute(update(attempts).where(attempts.c.id == attempt_id).values(incarnations=attempts.c.incarnations + 1))
            return connection.execute(select(jobs.c.incarnations).where(jobs.c.id == job.id)).scalar_one()

    def set_stage(self, attempt_id: str, index: int, *, status: str, step: int, total_steps: int, message: str | None = None) -> None:
        with self.database.write() as connection:
            job = live_job(connection, attempt_id)
            mine = (stages.c.job_id == job.id, stages.c.index == index)
            values = {"status": status, "step": step, "total_steps": total_steps, "message": clean_text(message)}
            if connection.execute(update(stages).where(*mine).values(**values)).rowcount == 0:
                raise NotFound(f"job {job.id} has no stage {index}")
            touch(connection, job.id)

    def control(self, attempt_id: str) -> tuple[str, str]:
        """What the job is wanted to be, and how a cancel is meant: graceful or now."""
        with self.database.read() as connection:
            job = live_job(connection, attempt_id, lock=False)
            return job.desired_status, job.cancel_mode

    def finish_attempt(self, attempt_id: str, outcome: str, reason: str | None, message: str | None) -> None:
        """What the driver says happened: succeeded, failed, paused, cancelled, or lost, which queues the job again.

        A job that stopped for a pause which was taken back meanwhile is queued again. Said twice, it counts once.
        """
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome is {outcome!r}; allowed: {', '.join(OUTCOMES)}")
        with self.database.write() as connection:
            job = read_job(connection, _attempt(connection, attempt_id).job_id, lock=True)
            attempt = _attempt(connection, attempt_id)
            if attempt.ended_at is not None and attempt.exit_reason == (reason or outcome) and _is_newest(connection, attempt):
                return  # the answer to the first call was lost on its way
            job = live_job(connection, attempt_id)
            _end(connection, attempt_id, reason or outcome, message)
            if outcome == "lost":
                add_event(connection, job.id, kind="attempt.ended", level="warning", message=message or "lost", data={"reason": reason})
            to = settle("queued" if outcome == "lost" else outcome, job.desired_status)
            set_status(connection, job, to, reason=reason, message=message)


def live_job(connection: Connection, attempt_id: str, *, lock: bool = True) -> JobRecord:
    """The job of an attempt that may write. Raises ``FencedError`` where it ended or is not the newest."""
    attempt = _attempt(connection, attempt_id)
    job = read_job(connection, attempt.job_id, lock=lock)
    attempt = _attempt(connection, attempt_id)  # again: it may have ended while the job's lock was waited for
    if attempt.ended_at is not None or not _is_newest(connection, attempt):
        raise FencedError(f"attempt {attempt_id} was replaced or has ended; it may not write", details={"attempt_id": attempt_id})
    return job


def _is_newest(connection: Connection, attempt: AttemptRecord) -> bool:
    newest = connection.execute(select(func.max(attempts.c.number)).where(attempts.c.job_id == attempt.job_id)).scalar_one()
    return attempt.number == newest


def _attempt(connection: Connection, attempt_id: str) -> AttemptRecord:
    row = connection.execute(select(*COLUMNS).where(attempts.c.id == attempt_id)).mappings().first()
    if row is None:
        raise NotFound(f"there is no attempt {attempt_id!r}")
    return AttemptRecord(**row)


def _end(connection: Connection, attempt_id: str, exit_reason: str, message: str | None) -> None:
    connection.execute(
        update(attempts).where(attempts.c.id == attempt_id).values(ended_at=now_text(), exit_reason=exit_reason[:64], message=clean_text(message))
    )
