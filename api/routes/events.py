"""/v1/jobs/{id}/events: a job's history, as pages and as a stream that takes up where it was left.

Invariant: the stream is read from the store by ``seq``, so a reconnect loses and repeats nothing, and it closes after the
last event of a job that has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.context import FoundJob, InContext
from api.responses import JOB_ROUTE
from api.schemas import TERMINAL, Event, Page
from api.views import event_view

router = APIRouter(prefix="/v1/jobs/{job_id}/events", tags=["events"])
BATCH = 200
LARGEST_SEQ = 2**53
RETRY_MS = 1000


@router.get("", responses=JOB_ROUTE)
def list_events(
    record: FoundJob,
    context: InContext,
    after: Annotated[int, Query(ge=0, le=LARGEST_SEQ, description="give events whose seq is larger")] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> Page[Event]:
    """One page of a job's events, the oldest first."""
    found = context.store.list_events(record.id, after_seq=after, limit=limit + 1)
    data = [event_view(item) for item in found[:limit]]
    return Page[Event](data=data, first_id=str(data[0].seq) if data else None, last_id=str(data[-1].seq) if data else None, has_more=len(found) > limit)


@router.get("/stream", response_class=EventSourceResponse, responses=JOB_ROUTE)
async def stream_events(
    record: FoundJob,
    context: InContext,
    last_event_id: Annotated[int, Header(ge=0, le=LARGEST_SEQ, description="the id of the last event seen; the stream goes on after it")] = 0,
) -> AsyncIterable[ServerSentEvent]:
    """Events as they happen, as server-sent events: ``id`` is the seq, ``event`` the type, ``data`` the event."""
    seen = last_event_id
    while True:
        # the job first, then its events: what ended the job is then among the events or already sent
        ended = (await run_sync(context.store.get_job, record.id)).status in TERMINAL
        found = await run_sync(lambda after: context.store.list_events(record.id, after_seq=after, limit=BATCH), seen)
        for item in found:
            event = event_view(item)
            seen = event.seq
            context.metrics.streamed_events.inc()
            yield ServerSentEvent(data=event, event=event.type, id=str(event.seq), retry=RETRY_MS)
        if not found:
            if ended:
                return
            await asyncio.sleep(context.poll_s)
