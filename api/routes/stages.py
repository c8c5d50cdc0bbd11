"""/v1/jobs/{id}/stages: where each stage stands, its resolved method, its measurements and checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path

from api.context import Context, FoundJob, InContext
from api.problems import ProblemError
from api.responses import JOB_ROUTE
from api.schemas import Page, Stage
from api.views import checkpoint_view, evaluation_view, mlflow_runs, stage_progress
from cluster.spec.job import JobSpec

router = APIRouter(prefix="/v1/jobs/{job_id}/stages", tags=["stages"])


@router.get("", responses=JOB_ROUTE)
def list_stages(record: FoundJob, context: InContext) -> Page[Stage]:
    """All stages of a job, in order; never more than one page."""
    stages = _stages(record, context)
    return Page[Stage](data=stages, first_id=stages[0].name, last_id=stages[-1].name, has_more=False)


@router.get("/{stage}", responses=JOB_ROUTE)
def get_stage(record: FoundJob, context: InContext, stage: Annotated[str, Path(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]) -> Stage:
    """One stage by its name."""
    for found in _stages(record, context):
        if found.name == stage:
            return found
    names = [item.name for item in record.stages]
    raise ProblemError("not_found", f"job {record.name!r} has no stage {stage!r}; it has {names}")


def _stages(record: Any, context: Context) -> list[Stage]:
    runs = mlflow_runs(record, context)
    resolved = JobSpec.model_validate(record.spec).resolved_stages()
    evaluations = [evaluation_view(record, item) for item in context.store.list_evaluations(record.id)]
    checkpoints = [checkpoint_view(record, item, context) for item in context.store.list_checkpoints(record.id)]
    return [
        Stage(
            **stage_progress(item, runs).model_dump(),
            resolved=resolved[item.index].model_dump(mode="json"),
            evaluations=[row for row in evaluations if row.stage == item.name],
            checkpoints=[row for row in checkpoints if row.stage_index == item.index],
        )
        for item in record.stages
    ]
