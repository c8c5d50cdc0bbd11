"""/v1/jobs/{id}/evaluations: the score matrix and what it says about gains and losses."""

from __future__ import annotations

from fastapi import APIRouter

from api.context import FoundJob, InContext
from api.evaluation_matrix import evaluations_view
from api.responses import JOB_ROUTE
from api.schemas import Evaluations

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["evaluations"])


@router.get("/evaluations", responses=JOB_ROUTE)
def get_evaluations(record: FoundJob, context: InContext) -> Evaluations:
    """``score_matrix[row][domain]``, row 0 being the base model, with retention figures as soon as one stage is done."""
    return evaluations_view(record, context.store.list_evaluations(record.id))
