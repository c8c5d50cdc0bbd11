"""Events: append-only, numbered without gaps per job."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, insert, select, update

from cluster.errors import NotFound
from services.jobs.connection import Database, clean_text, now_text
from services.jobs.ids import new_id
from services.jobs.records import EventRecord
from services.jobs.tables import events, jobs


class EventRows:
    """Part of ``JobStore``."""

    database: Database

    def append_event(
        self, job_id: str, *, kind: str, message: str, level: str = "info", data: dict[str, Any] | None = None, stage: str | None = None
    ) -> int:
        """The event's number in its job."""
        with self.database.write() as connection:
            return add_event(connection, job_id, kind=kind, level=level, message=message, data=data, stage=stage)

    def list_events(
        self, job_id: str, after_seq: int = 0, limit: int | None = 100, *, kinds: Collection[str] | None = None
    ) -> list[EventRecord]:
        """The oldest first; ``limit`` None: all of them. ``kinds``: only those."""
        query = select(events).where(events.c.job_id == job_id, events.c.seq > after_seq).order_by(events.c.seq).limit(limit)
        if kinds is not None:
            query = query.where(events.c.kind.in_(kinds))
        with self.database.read() as connection:
            return [EventRecord(**row) for row in connection.execute(query).mappings()]


def add_event(
    connection: Connection,
    job_id: str,
    *,
    kind: str,
    message: str,
    level: str = "info",
    data: dict[str, Any] | None = None,
    stage: str | None = None,
) -> int:
    """Inside a transaction: the job's row hands out the number, so that it also serialises the writers."""
    numbered = update(jobs).where(jobs.c.id == job_id).values(last_event_seq=jobs.c.last_event_seq + 1, version=jobs.c.version + 1)
    if connection.execute(numbered).rowcount == 0:
        raise NotFound(f"there is no job {job_id!r}")
    seq = connection.execute(select(jobs.c.last_event_seq).where(jobs.c.id == job_id)).scalar_one()
    connection.execute(
        insert(events).values(
            id=new_id("evt"), job_id=job_id, seq=seq, kind=kind, level=level, stage=stage, message=clean_text(message), data=data or {}, created_at=now_text()
        )
    )
    return seq
