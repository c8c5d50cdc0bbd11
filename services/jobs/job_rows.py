"""Jobs: created once per idempotency key, listed, asked to change, changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, case, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from cluster.errors import Conflict, NotFound
from cluster.spec.job import JobSpec
from services.jobs.connection import Database, clean_text, now_text
from services.jobs.event_rows import add_event
from services.jobs.ids import new_id
from services.jobs.lease_rows import check_epoch
from services.jobs.records import JobRecord, StageRecord
from services.jobs.states import ACTIVE, STAGES_WHEN_LEAVING, TERMINAL, check_request, check_transition, settle
from services.jobs.tables import attempts, events, jobs, stages, study_members

COLUMNS = tuple(jobs.c[name] for name in JobRecord.__slots__ if name != "stages")


class JobRows:
    """Part of ``JobStore``."""

    database: Database

    def create_job(
        self, spec: JobSpec, *, resolved: dict[str, Any], idempotency_key: str | None = None, request_hash: str | None = None
    ) -> tuple[JobRecord, bool]:
        """The job, and whether this key had made it before. Raises ``Conflict`` for the same key with another body."""
        try:
            with self.database.write() as connection:
                known = self._by_key(connection, idempotency_key, request_hash)
                if known is not None:
                    return known, True
                job_id = insert_job(connection, spec, resolved=resolved, idempotency_key=idempotency_key, request_hash=request_hash)
                return _read(connection, job_id), False
        except IntegrityError:
            # Another process inserted the same key between our look and our insert.
            with self.database.read() as connection:
                known = self._by_key(connection, idempotency_key, request_hash)
                if known is None:
                    raise
                return known, True

    def _by_key(self, connection: Connection, key: str | None, request_hash: str | None) -> JobRecord | None:
        if key is None:
            return None
        row = connection.execute(select(jobs.c.id, jobs.c.request_hash).where(jobs.c.idempotency_key == key)).first()
        if row is None:
            return None
        if row.request_hash != request_hash:
            raise Conflict(
                f"idempotency key {key!r} was used before with another body (job {row.id})",
                reason="idempotency_key_reused",
                details={"job_id": row.id},
            )
        return _read(connection, row.id)

    def get_job(self, job: str) -> JobRecord:
        """By id, or the newest by name. Raises ``NotFound``."""
        by_name = select(jobs.c.id).where(jobs.c.name == job).order_by(jobs.c.id.desc()).limit(1)
        with self.database.read() as connection:
            is_id = connection.execute(select(jobs.c.id).where(jobs.c.id == job)).first() is not None
            job_id = job if is_id else connection.execute(by_name).scalar_one_or_none()
            if job_id is None:
                raise NotFound(f"there is no job with the id or name {job!r}")
            return _read(connection, job_id)

    def list_jobs(
        self,
        *,
        status: str | Sequence[str] | None = None,
        name: str | None = None,
        label: Any = None,
        after: str | None = None,
        limit: int = 20,
        order: str = "desc",
    ) -> tuple[list[JobRecord], bool]:
        """A page of jobs by time of creation, and whether there are more. ``label``: pairs that must all be there."""
        wanted = dict([label] if isinstance(label, tuple) else label or {})
        conditions = []
        if status is not None:
            conditions.append(jobs.c.status.in_([status] if isinstance(status, str) else list(status)))
        if name is not None:
            conditions.append(jobs.c.name == name)
        if after is not None:
            conditions.append(jobs.c.id < after if order == "desc" else jobs.c.id > after)
        conditions += [self._has_label(key, value) for key, value in wanted.items()]
        query = select(*COLUMNS).where(and_(True, *conditions)).order_by(jobs.c.id.desc() if order == "desc" else jobs.c.id).limit(limit + 1)
        with self.database.read() as connection:
            rows = connection.execute(query).mappings().all()
            return _records(connection, rows[:limit]), len(rows) > limit

    def _has_label(self, key: str, value: str) -> Any:
        """Labels are looked up as rows, so that a key may hold any character."""
        unfold = func.json_each if self.database.is_sqlite else func.json_each_text
        label = unfold(jobs.c.labels).table_valued("key", "value")
        return select(1).select_from(label).where(label.c.key == key, label.c.value == value).correlate(jobs).exists()

    def jobs_in(self, statuses: Sequence[str]) -> list[JobRecord]:
        """Oldest first."""
        query = select(*COLUMNS).where(jobs.c.status.in_(list(statuses))).order_by(jobs.c.id)
        with self.database.read() as connection:
            return _records(connection, connection.execute(query).mappings().all())

    def next_queued(self) -> JobRecord | None:
        """The job that waits longest; those of studies after all others, because a study is many jobs and would hold up a single
        one for its whole length."""
        of_study = select(1).where(study_members.c.job_id == jobs.c.id).correlate(jobs).exists()
        first = select(jobs.c.id).where(jobs.c.status == "queued").order_by(case((of_study, 1), else_=0), jobs.c.id).limit(1)
        query = select(*COLUMNS).where(jobs.c.id == first.scalar_subquery())
        with self.database.read() as connection:
            return next(iter(_records(connection, connection.execute(query).mappings().all())), None)

    def job_states(self) -> dict[str, str]:
        """The status of every job by id, oldest first; without the specs, which are most of a row."""
        with self.database.read() as connection:
            return {job_id: status for job_id, status in connection.execute(select(jobs.c.id, jobs.c.status).order_by(jobs.c.id))}

    def count_jobs(self) -> dict[str, int]:
        with self.database.read() as connection:
            rows = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
            return {status: count for status, count in rows}

    def oldest_queued_at(self) -> str | None:
        with self.database.read() as connection:
            return connection.execute(select(func.min(jobs.c.created_at)).where(jobs.c.status == "queued")).scalar_one()

    # -- what users ask for ------------------------------------------------------------------------------------------

    def request_cancel(self, job_id: str, mode: str = "graceful") -> JobRecord:
        """``graceful``: at the next step, with a checkpoint; ``now``: at once. A cancel is never taken back."""
        with self.database.write() as connection:
            return request(connection, job_id, "cancel", mode=mode)

    def request_pause(self, job_id: str) -> JobRecord:
        """Stop at the next step with a checkpoint, and leave the cluster."""
        with self.database.write() as connection:
            return request(connection, job_id, "pause")

    def request_resume(self, job_id: str) -> JobRecord:
        """Queue a paused job again, or take back a pause that has not happened yet."""
        with self.database.write() as connection:
            return request(connection, job_id, "resume")

    # -- what the scheduler does -------------------------------------------------------------------------------------

    def transition(self, job_id: str, to: str, *, epoch: int, reason: str | None = None, message: str | None = None) -> JobRecord:
        """Move a job, or leave it where it is if it is there already. Where its user wants something else by now than the
        scheduler knew, it goes there (``states.settle``). Raises ``FencedError`` and ``IllegalTransition``."""
        with self.database.write() as connection:
            check_epoch(connection, epoch)
            job = _read(connection, job_id, lock=True)
            settled = settle(to, job.desired_status)
            withdrawn = to == "pausing" and settled == "running"
            if settled != job.status and not withdrawn:
                set_status(connection, job, settled, reason=reason if settled == to else settled, message=message)
            return _read(connection, job_id)


def insert_job(
    connection: Connection, spec: JobSpec, *, resolved: dict[str, Any], idempotency_key: str | None = None, request_hash: str | None = None
) -> str:
    """A queued job with its stages and its first event; its id, by which it waits among its like."""
    content, job_id = spec.model_dump(mode="json"), new_id("job")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    connection.execute(
        insert(jobs).values(
            id=job_id,
            name=spec.name,
            status="queued",
            desired_status="running",
            cancel_mode="graceful",
            version=1,
            spec=content,
            spec_hash=hashlib.sha256(canonical.encode()).hexdigest(),
            resolved=resolved,
            labels=dict(spec.labels),
            idempotency_key=idempotency_key,
            request_hash=request_hash,
            last_event_seq=0,
            incarnations=0,
            created_at=now_text(),
        )
    )
    parts = [
        {"job_id": job_id, "index": stage.index, "name": stage.name, "status": "queued", "step": 0, "total_steps": stage.steps}
        for stage in spec.resolved_stages()
    ]
    connection.execute(insert(stages), parts)
    add_event(connection, job_id, kind="job.status", message="queued", data={"status": "queued"})
    return job_id


ASKED: dict[str, tuple[str, dict[str, str]]] = {
    "cancel": ("cancelled", {"queued": "cancelled", "paused": "cancelled"}),
    "pause": ("paused", {"queued": "paused"}),
    "resume": ("running", {"paused": "queued"}),
}
"""What a request makes the job's desired status, and which states it changes at once."""


def request(connection: Connection, job_id: str, action: str, *, mode: str = "graceful") -> JobRecord:
    """Note what a user wants of a job: cancel, pause or resume. Raises ``IllegalTransition``."""
    desired, at_once = ASKED[action]
    job = _read(connection, job_id, lock=True)
    check_request(job.id, stands(job.status, job.desired_status), action)
    new = job.desired_status != desired or (mode == "now" and job.cancel_mode != "now")
    if job.status in TERMINAL or not new:
        return job
    _update(connection, job.id, desired_status=desired, cancel_mode="now" if mode == "now" else job.cancel_mode)
    add_event(connection, job.id, kind="job.request", message=f"{action} was asked for", data={"action": action})
    job = _read(connection, job.id)
    if job.status in at_once:
        set_status(connection, job, at_once[job.status], reason=f"{action}_requested", message=None)
    elif job.status == "pausing" and desired == "running":
        set_status(connection, job, _before_pausing(connection, job.id), reason="resume_requested", message="the pause was taken back")
    return _read(connection, job.id)


def set_status(connection: Connection, job: JobRecord, to: str, *, reason: str | None, message: str | None) -> None:
    """A legal change of state with its event. A job that leaves the cluster takes its stages and its open attempt along.
    Raises ``IllegalTransition``."""
    check_transition(job.id, job.status, to)
    message = clean_text(message)
    values: dict[str, Any] = {"status": to, "reason": reason, "message": message}
    if to == "running" and job.started_at is None:
        values["started_at"] = now_text()
    if to == "starting":
        values["cancel_mode"] = "graceful"
    if to in TERMINAL:
        values["finished_at"] = now_text()
    if to == "cancelled":
        values["desired_status"] = "cancelled"
    _update(connection, job.id, **values)
    if to in STAGES_WHEN_LEAVING:
        for status, becomes in STAGES_WHEN_LEAVING[to].items():
            connection.execute(update(stages).where(stages.c.job_id == job.id, stages.c.status == status).values(status=becomes))
        still_open = (attempts.c.job_id == job.id, attempts.c.ended_at.is_(None))
        connection.execute(update(attempts).where(*still_open).values(ended_at=now_text(), exit_reason=reason or to, message=message))
    text = f"{job.status} -> {to}" + (f": {message}" if message else "")
    level = "error" if to == "failed" else "warning" if to == "queued" and job.status in ACTIVE else "info"
    add_event(connection, job.id, kind="job.status", level=level, message=text, data={"status": to, "from": job.status, "reason": reason})


def stands(status: str, desired: str) -> str:
    """The state that requests are held against: what was asked for last counts, though the scheduler has not seen it yet."""
    if status in ACTIVE and desired != "running":
        return {"paused": "pausing", "cancelled": "cancelling"}[desired]
    return status


def _before_pausing(connection: Connection, job_id: str) -> str:
    """Running, unless no event says that the newest attempt ever ran."""
    last = select(events.c.data).where(events.c.job_id == job_id, events.c.kind == "job.status").order_by(events.c.seq.desc()).limit(2)
    seen = [row.data.get("status") for row in connection.execute(last)]
    return "starting" if seen == ["pausing", "starting"] else "running"


def _update(connection: Connection, job_id: str, **values: Any) -> None:
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(version=jobs.c.version + 1, **values))


def touch(connection: Connection, job_id: str) -> None:
    """Grow the version, so that whoever waits for a change sees one."""
    _update(connection, job_id)


def _read(connection: Connection, job_id: str, *, lock: bool = False) -> JobRecord:
    query = select(*COLUMNS).where(jobs.c.id == job_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise NotFound(f"there is no job {job_id!r}")
    return _records(connection, [row])[0]


def _records(connection: Connection, rows: Sequence[Any]) -> list[JobRecord]:
    """Records of job rows in the same order, with their stages, which one query fetches for all."""
    found: dict[str, list[StageRecord]] = {row["id"]: [] for row in rows}
    query = select(stages).where(stages.c.job_id.in_(list(found))).order_by(stages.c.job_id, stages.c.index)
    for part in connection.execute(query).mappings() if rows else ():
        found[part["job_id"]].append(StageRecord(**{name: part[name] for name in StageRecord.__slots__}))
    return [JobRecord(**row, stages=tuple(found[row["id"]])) for row in rows]


read_job = _read
__all__ = ["JobRows", "insert_job", "read_job", "request", "set_status", "stands", "touch"]
