"""/v1/jobs/{id}/metrics: numbers by step, from the job's own log; MLflow is not asked."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.context import FoundJob, InContext
from api.responses import JOB_ROUTE
from api.schemas import MetricPoint, Metrics
from services.tracking.log import read_metrics

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["metrics"])


@router.get("/metrics", responses=JOB_ROUTE)
def get_metrics(
    record: FoundJob,
    context: InContext,
    key: Annotated[str | None, Query(max_length=250, description="one metric, such as reward/mean; every metric otherwise")] = None,
    stage: Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")] = None,
    since_step: Annotated[int | None, Query(ge=0, le=2**31, description="points at this step and later: of the stage where one is given, of the job otherwise")] = None,
    max_points: Annotated[int, Query(ge=1, le=100_000, description="thinned evenly beyond this")] = 10_000,
) -> Metrics:
    """Points of a job's metrics. Where a restart repeated a step, its last value counts."""
    points = read_metrics(context.settings.run_dir(record.id), key=key, stage=stage, since_step=since_step, max_points=max_points)
    data = [MetricPoint.model_validate(point) for point in points]
    return Metrics(keys=sorted({point.key for point in data}), data=data)
