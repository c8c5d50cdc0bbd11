"""/v1/jobs/{id}/checkpoints: where the saved states and the trained policies lie."""

from __future__ import annotations

from fastapi import APIRouter

from api.context import FoundJob, InContext
from api.responses import JOB_ROUTE
from api.schemas import Checkpoint, Page
from api.views import checkpoint_view

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["checkpoints"])


@router.get("/checkpoints", responses=JOB_ROUTE)
def list_checkpoints(record: FoundJob, context: InContext) -> Page[Checkpoint]:
    """The checkpoints that were committed, the oldest first; never more than one page."""
    data = [checkpoint_view(record, item, context) for item in context.store.list_checkpoints(record.id)]
    return Page[Checkpoint](data=data, first_id=data[0].id if data else None, last_id=data[-1].id if data else None, has_more=False)
