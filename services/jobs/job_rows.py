"""Jobs: created once per idempotency key, listed, asked to change, changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from cluster.errors import Conflict, NotFound
from cluster.spec.job import JobSpec
from services.jobs.connection import Database, now_text
from services.jobs.event_rows import add_event
from services.jobs.ids import new_id
from services.jobs.lease_rows import check_epoch
from services.jobs.records import JobRecord, StageRecord
from services.jobs.states import TERMINAL, check_request, check_transition
from services.jobs.tables import jobs, stages

RECORD_COLUMNS = tuple(name for name in JobRecord.__slots__ if name != "stages")


class JobRows:
    """Part of ``JobStore``."""

    database: Database

    def create_job(
        self, spec: JobSpec, *, resolved: dict[str, Any], idempotency_key: str | None = None, request_hash: str | None = None
    ) -> tuple[JobRecord, bool]:
        """The job, and whether this key had made it before. Raises ``Conflict`` for the same key with another body."""
        content = spec.model_dump(mode="json")
        try:
            with self.database.write() as connection:
                known = self._by_key(connection, idempotency_key, request_hash)
                if known is not None:
                    return known, True
                job_id = self._insert_job(connection, spec, content, resolved, idempotency_key, request_hash)
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

    def _insert_job(self, connection: Connection, spec: JobSpec, content, resolved, key, request_hash) -> str:
        job_id, now = new_id("job"), now_text()
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
                idempotency_key=key,
                request_hash=request_hash,
                last_event_seq=0,
                incarnations=0,
                created_at=now,
            )
        )
        for stage in spec.resolved_stages():
            connection.execute(
                insert(stages).values(job_id=job_id, index=stage.index, name=stage.name, status="queued", step=0, total_steps=stage.steps)
            )
        add_event(connection, job_id, kind="job.status", message="queued", data={"status": "queued"})
        return job_id

    def get_job(self, job: str) -> JobRecord:
        """By id, or the newest by name. Raises ``NotFound``."""
        with self.database.read() as connection:
            if job.startswith("job_"):
                return _read(connection, job)
            row = connection.execute(select(jobs.c.id).where(jobs.c.name == job).order_by(jobs.c.id.desc()).limit(1)).first()
            if row is None:
                raise NotFound(f"there is no job {job!r}")
            return _read(connection, row.id)

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
        conditions += [jobs.c.labels[key].as_string() == value for key, value in wanted.items()]
        query = select(jobs.c.id).where(and_(True, *conditions)).order_by(jobs.c.id.desc() if order == "desc" else jobs.c.id).limit(limit + 1)
        with self.database.read() as connection:
            ids = [row.id for row in connection.execute(query)]
            return [_read(connection, job_id) for job_id in ids[:limit]], len(ids) > limit

    def jobs_in(self, statuses: Sequence[str]) -> list[JobRecord]:
        """Oldest first."""
        with self.database.read() as connection:
            ids = connection.execute(select(jobs.c.id).where(jobs.c.status.in_(list(statuses))).order_by(jobs.c.id)).scalars().all()
            return [_read(connection, job_id) for job_id in ids]

    def next_queued(self) -> JobRecord | None:
        return next(iter(self.jobs_in(["queued"])), None)

    def count_jobs(self) -> dict[str, int]:
        with self.database.read() as connection:
            return dict(connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status)).tuples().all())

    def oldest_queued_at(self) -> str | None:
        with self.database.read() as connection:
            return connection.execute(select(func.min(jobs.c.created_at)).where(jobs.c.status == "queued")).scalar_one()

    # -- what users ask for ------------------------------------------------------------------------------------------

    def request_cancel(self, job_id: str, mode: str = "graceful") -> JobRecord:
        return self._request(job_id, "cancel", desired="cancelled", at_once={"queued": "cancelled", "paused": "cancelled"}, mode=mode)

    def request_pause(self, job_id: str) -> JobRecord:
        return self._request(job_id, "pause", desired="paused", at_once={"queued": "paused"})

    def request_resume(self, job_id: str) -> JobRecord:
        return self._request(job_id, "resume", desired="running", at_once={"paused": "queued"})

    def _request(self, job_id: str, action: str, *, desired: str, at_once: dict[str, str], mode: str | None = None) -> JobRecord:
        with self.database.write() as connection:
            job = _read(connection, job_id, lock=True)
            check_request(job.id, job.status, action)
            values: dict[str, Any] = {"desired_status": desired}
            if mode is not None:
                values["cancel_mode"] = mode
            _update(connection, job.id, **values)
            add_event(connection, job.id, kind="job.request", message=f"{action} was asked for", data={"action": action})
            if job.status in at_once:
                set_status(connection, job, at_once[job.status], reason=f"{action}_requested", message=None)
            return _read(connection, job.id)

    # -- what the scheduler does -------------------------------------------------------------------------------------

    def transition(self, job_id: str, to: str, *, epoch: int, reason: str | None = None, message: str | None = None) -> None:
        with self.database.write() as connection:
            check_epoch(connection, epoch)
            set_status(connection, _read(connection, job_id, lock=True), to, reason=reason, message=message)


def set_status(connection: Connection, job: JobRecord, to: str, *, reason: str | None, message: str | None) -> None:
    """A legal change of state, with its event. Raises ``IllegalTransition``."""
    check_transition(job.id, job.status, to)
    values: dict[str, Any] = {"status": to, "reason": reason, "message": message}
    if to == "running" and job.started_at is None:
        values["started_at"] = now_text()
    if to in TERMINAL:
        values["finished_at"] = now_text()
    if to == "queued":
        values["desired_status"] = "running"
    _update(connection, job.id, **values)
    if to in ("failed", "cancelled"):
        connection.execute(update(stages).where(stages.c.job_id == job.id, stages.c.status == "running").values(status=to))
    text = f"{job.status} -> {to}" + (f": {message}" if message else "")
    level = "error" if to == "failed" else "info"
    add_event(connection, job.id, kind="job.status", level=level, message=text, data={"status": to, "reason": reason})


def _update(connection: Connection, job_id: str, **values: Any) -> None:
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(version=jobs.c.version + 1, **values))


def touch(connection: Connection, job_id: str) -> None:
    """Grow the version, so that whoever waits for a change sees one."""
    _update(connection, job_id)


def _read(connection: Connection, job_id: str, *, lock: bool = False) -> JobRecord:
    query = select(*(jobs.c[name] for name in RECORD_COLUMNS)).where(jobs.c.id == job_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        raise NotFound(f"there is no job {job_id!r}")
    parts = connection.execute(select(stages).where(stages.c.job_id == job_id).order_by(stages.c.index)).mappings()
    progress = tuple(StageRecord(**{name: part[name] for name in StageRecord.__slots__}) for part in parts)
    return JobRecord(**row, stages=progress)


read_job = _read
__all__ = ["JobRows", "read_job", "set_status", "touch"]
