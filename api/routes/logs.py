"""/v1/jobs/{id}/logs: what the job's drivers printed, the attempts one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter, Query
from fastapi.responses import PlainTextResponse, Response, StreamingResponse

from api.context import FoundJob, InContext
from api.job_logs import LogReader, log_files
from api.responses import JOB_ROUTE
from api.schemas import TERMINAL

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["logs"])


@router.get("/logs", response_class=PlainTextResponse, responses=JOB_ROUTE)
async def get_logs(
    record: FoundJob,
    context: InContext,
    tail: Annotated[int, Query(ge=0, le=10_000, description="how many of the last lines")] = 200,
    follow: Annotated[bool, Query(description="stay and send what is written, until the job has ended")] = False,
) -> Response:
    """The log as plain text. Control characters are written out, so that a log cannot steer a terminal."""
    store = context.store

    def files() -> list:
        return log_files(context.settings, record.id, [attempt.id for attempt in store.list_attempts(record.id)])

    reader = LogReader(files)
    first = await run_sync(reader.tail, tail)
    if not follow:
        return PlainTextResponse(first)

    async def pieces() -> AsyncIterator[str]:
        yield first
        while True:
            ended = (await run_sync(store.get_job, record.id)).status in TERMINAL
            piece = await run_sync(reader.more)
            if piece:
                yield piece
            elif ended:
                return
            await asyncio.sleep(context.poll_s)

    return StreamingResponse(pieces(), media_type="text/plain", headers={"X-Accel-Buffering": "no"})
