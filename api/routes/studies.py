"""/v1/studies: a file's runs as jobs, created, read and steered together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Depends, Header, Query, Request, Response

from api.cluster_view import cluster_resources
from api.context import FoundStudy, InContext
from api.documents import check_tree, read_document
from api.problems import ProblemError
from api.responses import problems
from api.routes.jobs import MAX_PAGE
from api.schemas import CancelRequest, Page, Study, StudyPlan, StudyRecords
from api.study_submission import check_study
from api.study_views import records_of, study_plan, study_view
from cluster.spec.study import StudySpec

router = APIRouter(prefix="/v1/studies", tags=["studies"])
MAX_STUDY_VALUES = 8_000_000
"""Of a body with records; the study file in it may hold as many as a job file."""
BESIDE = ("records", "folders")
STUDY_FILE = {
    "schema": {
        "allOf": [{"$ref": "#/components/schemas/StudySpec"}],
        "properties": {
            "records": {"type": "array", "items": {"type": "object"}, "description": "study records; a member whose digest one of them has is not run"},
            "folders": {"type": "array", "items": {"type": "string"}, "description": "folders of the service's machine in which relative paths are looked up, first come first"},
        },
    }
}
BODY = {"requestBody": {"required": True, "description": "the study file", "content": {"application/json": STUDY_FILE, "application/yaml": STUDY_FILE}}}
SUBMIT_ERRORS = problems("malformed_body", "conflict", "body_too_large", "unsupported_media_type", "invalid_spec", "idempotency_key_reused", "service_unavailable")
STUDY_ROUTE = problems("not_found")
ACTION_ERRORS = problems("not_found", "illegal_transition")


async def read_study(request: Request) -> tuple[Any, list[Any], list[str]]:
    """The study file in the body, the records and the folders beside it; parsed in a thread."""
    return await run_sync(_read_study, await request.body(), request.headers.get("content-type"))


def _read_study(body: bytes, content_type: str | None) -> tuple[Any, list[Any], list[str]]:
    document = read_document(body, content_type, max_values=MAX_STUDY_VALUES)
    beside = {name: document.pop(name, None) or [] for name in BESIDE} if isinstance(document, dict) else {name: [] for name in BESIDE}
    check_tree(document)
    for name, kind in zip(BESIDE, (dict, str), strict=True):
        if not isinstance(beside[name], list) or not all(isinstance(item, kind) for item in beside[name]):
            raise ProblemError("malformed_body", f"{name} must be a list of {'objects' if kind is dict else 'paths'}")
    if not all(Path(folder).is_absolute() for folder in beside["folders"]) or len(beside["folders"]) > 8:
        raise ProblemError("malformed_body", "folders must be at most 8 absolute paths")
    return document, beside["records"], beside["folders"]


@router.post("", status_code=201, response_model=None, openapi_extra=BODY, responses={201: {"model": Study}, 200: {"model": StudyPlan, "description": "with dry_run"}, **SUBMIT_ERRORS})
def create_study(
    parsed: Annotated[Any, Depends(read_study)],
    context: InContext,
    response: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255, pattern=r"^[\x21-\x7e]+$", description="repeating a submission with the same key gives the first one's study")] = None,
    dry_run: Annotated[bool, Query(description="check and plan, store nothing")] = False,
) -> Study | StudyPlan:
    """Submit a study file: every member becomes a queued job, all in one transaction.

    A member for which ``records`` has one of the same digest that succeeded, or failed by its method, is not run. A fault anywhere refuses
    the whole, and the answer lists every fault with its place in the study file.
    """
    payload, records, folders = parsed
    cluster = cluster_resources(context.settings)
    home = context.settings.home.absolute()
    submission = check_study(payload, records=records, folders=[*map(Path, folders), home], cluster=cluster)
    if dry_run:
        response.status_code = 200
        return study_plan(submission, cluster)
    record, replayed = context.store.create_study(
        submission.spec, submission.members, spec_hash=submission.spec_hash, idempotency_key=idempotency_key, request_hash=submission.request_hash
    )
    response.headers["Location"] = f"/v1/studies/{record.id}"
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return study_view(record, context, members=context.store.study_members(record.id), unmatched=submission.unmatched)


@router.get("", responses=problems("invalid_request"))
def list_studies(
    context: InContext,
    name: Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")] = None,
    after: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,80}$", description="last_id of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="by time of creation")] = "desc",
) -> Page[Study]:
    """One page of studies, the newest first, without their members."""
    records, has_more = context.store.list_studies(name=name, after=after, limit=limit, order=order)
    data = [study_view(record, context) for record in records]
    return Page[Study](data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=has_more)


@router.get("/{study_id}", responses=STUDY_ROUTE)
def get_study(record: FoundStudy, context: InContext) -> Study:
    """A study with its members."""
    return study_view(record, context, members=context.store.study_members(record.id))


@router.get("/{study_id}/spec", responses=STUDY_ROUTE)
def get_study_spec(record: FoundStudy) -> dict[str, Any]:
    """The study file as it was sent."""
    return record.spec


@router.post("/{study_id}/cancel", status_code=202, responses=ACTION_ERRORS | problems("body_too_large"))
def cancel_study(record: FoundStudy, context: InContext, body: CancelRequest | None = None) -> Study:
    """Ask for the end of every member that has not ended."""
    return study_view(context.store.request_study(record.id, "cancel", (body or CancelRequest()).mode), context)


@router.post("/{study_id}/pause", status_code=202, responses=ACTION_ERRORS)
def pause_study(record: FoundStudy, context: InContext) -> Study:
    """Running members stop at their next step, with a checkpoint; queued ones wait."""
    return study_view(context.store.request_study(record.id, "pause"), context)


@router.post("/{study_id}/resume", status_code=202, responses=ACTION_ERRORS)
def resume_study(record: FoundStudy, context: InContext) -> Study:
    """Paused members go on; failed and cancelled ones are queued again, as new jobs of the same members."""
    return study_view(context.store.request_study(record.id, "resume"), context)


@router.get("/{study_id}/records", response_model=None, responses={200: {"model": StudyRecords, "content": {"application/x-ndjson": {}}}, **STUDY_ROUTE})
def get_study_records(record: FoundStudy, context: InContext, request: Request) -> Response | StudyRecords:
    """The records of all members that have ended; one line each where ``Accept`` asks for application/x-ndjson."""
    found = records_of(record, context)
    if "application/x-ndjson" in request.headers.get("accept", ""):
        return Response("".join(json.dumps(item, separators=(",", ":")) + "\n" for item in found), media_type="application/x-ndjson")
    return StudyRecords(data=found)


@router.get("/{study_id}/report", responses=STUDY_ROUTE)
def get_study_report(record: FoundStudy, context: InContext) -> dict[str, Any]:
    """Figures, verdicts on the hypotheses and tables, from the members that have ended so far."""
    from services.evaluation.studies import build_study_report  # scipy: a second, and most calls never need it

    return build_study_report(StudySpec.model_validate(record.spec), records_of(record, context))
