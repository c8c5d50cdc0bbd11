"""/v1/jobs: submit, list, read, and ask for a change. Actions only write what is wanted; the scheduler does it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import yaml
from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from api.cluster_view import cluster_resources
from api.context import Context, FoundJob, InContext, JobId
from api.documents import YAML_TYPES, read_document
from api.plan import make_plan
from api.responses import JOB_ROUTE, problems
from api.schemas import CancelRequest, Job, JobStatus, Page, Plan
from api.submission import check_submission
from api.views import job_view

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
MAX_WAIT_S = 60.0
MAX_PAGE = 100
JOB_FILE = {"schema": {"$ref": "#/components/schemas/JobSpec"}}
BODY = {"requestBody": {"required": True, "description": "the job file", "content": {"application/json": JOB_FILE, "application/yaml": JOB_FILE}}}
SUBMIT_ERRORS = problems("malformed_body", "conflict", "body_too_large", "unsupported_media_type", "invalid_spec", "idempotency_key_reused", "service_unavailable")
LABEL = r"^[^=\x00]{1,63}=[^\x00]{0,512}$"


async def read_body(request: Request) -> Any:
    """The job file in the body, parsed in a thread."""
    return await run_sync(read_document, await request.body(), request.headers.get("content-type"))


@router.post("", status_code=201, response_model=None, openapi_extra=BODY, responses={201: {"model": Job}, 200: {"model": Plan, "description": "with dry_run"}, **SUBMIT_ERRORS})
def create_job(
    payload: Annotated[Any, Depends(read_body)],
    context: InContext,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$", description="repeating a submission with the same key gives the first one's job")] = None,
    dry_run: Annotated[bool, Query(description="check and plan, store nothing")] = False,
) -> Job | Plan:
    """Submit a job file, or with ``dry_run`` see what it would become.

    A fault anywhere refuses it, and the answer lists every fault. ``Location`` names the job; a replay of an idempotency
    key answers with the job of the first time and ``Idempotent-Replayed: true``.
    """
    cluster = cluster_resources(context.settings)
    submission = check_submission(payload, base_dir=context.settings.home.absolute(), cluster=cluster)
    if dry_run:
        response.status_code = 200
        return make_plan(submission, cluster)
    record, replayed = context.store.create_job(
        submission.spec, resolved=submission.resolved, idempotency_key=idempotency_key, request_hash=submission.request_hash
    )
    response.headers["Location"] = f"/v1/jobs/{record.id}"
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return job_view(record, context)


@router.get("", responses=problems("invalid_request"))
def list_jobs(
    context: InContext,
    status: Annotated[JobStatus | None, Query()] = None,
    name: Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")] = None,
    label: Annotated[list[Annotated[str, Query(pattern=LABEL)]] | None, Query(description="key=value; repeat for more", max_length=32)] = None,
    after: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,80}$", description="last_id of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="by time of creation")] = "desc",
) -> Page[Job]:
    """One page of jobs, the newest first."""
    labels = dict(text.partition("=")[::2] for text in label or [])
    records, has_more = context.store.list_jobs(status=status, name=name, label=labels or None, after=after, limit=limit, order=order)
    data = [job_view(record, context) for record in records]
    return Page[Job](data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=has_more)


@router.get("/{job_id}", responses={304: {"description": "still the version of If-None-Match"}, **JOB_ROUTE})
async def get_job(
    job_id: JobId,
    context: InContext,
    response: Response,
    wait: Annotated[float | None, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait for the job to change from the version in If-None-Match, or from now")] = None,
    if_none_match: Annotated[str | None, Header(max_length=100)] = None,
) -> Job:
    """A job. ``ETag`` is its version; with ``wait`` the answer comes when the job changes."""
    record = await run_sync(context.store.get_job, job_id)
    known = (if_none_match or "").strip().removeprefix("W/").strip('"') or None
    if wait:
        record = await _changed(record, known if known is not None else str(record.version), wait, context)
    etag = f'"{record.version}"'
    if known == str(record.version):
        return Response(status_code=304, headers={"ETag": etag})
    response.headers["ETag"] = etag
    return job_view(record, context)


async def _changed(record: Any, known: str, wait_s: float, context: Context) -> Any:
    deadline = asyncio.get_running_loop().time() + wait_s
    while str(record.version) == known and (left := deadline - asyncio.get_running_loop().time()) > 0:
        await asyncio.sleep(min(context.poll_s, left))
        record = await run_sync(context.store.get_job, record.id)
    return record


@router.get("/{job_id}/spec", response_model=None, responses={200: {"content": {"application/yaml": {}, "application/json": JOB_FILE}}, **JOB_ROUTE})
def get_spec(record: FoundJob, request: Request) -> Response | dict[str, Any]:
    """The job file with every default filled in; YAML where ``Accept`` asks for it."""
    accepted = request.headers.get("accept", "")
    if any(media_type in accepted for media_type in YAML_TYPES):
        return Response(yaml.safe_dump(record.spec, sort_keys=False), media_type="application/yaml")
    return record.spec


ACTION_ERRORS = problems("not_found", "illegal_transition")


@router.post("/{job_id}/cancel", status_code=202, responses=ACTION_ERRORS | problems("body_too_large"))
def cancel_job(record: FoundJob, context: InContext, body: CancelRequest | None = None) -> Job:
    """Ask for the job's end: at the next step with a checkpoint, or at once. Asking again is no error."""
    return job_view(context.store.request_cancel(record.id, (body or CancelRequest()).mode), context)


@router.post("/{job_id}/pause", status_code=202, responses=ACTION_ERRORS)
def pause_job(record: FoundJob, context: InContext) -> Job:
    """Ask the job to stop at the next step, with a checkpoint, and to leave the cluster."""
    return job_view(context.store.request_pause(record.id), context)


@router.post("/{job_id}/resume", status_code=202, responses=ACTION_ERRORS)
def resume_job(record: FoundJob, context: InContext) -> Job:
    """Queue a paused job again; it continues from its last checkpoint."""
    return job_view(context.store.request_resume(record.id), context)
