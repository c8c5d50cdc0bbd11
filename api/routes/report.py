"""/v1/jobs/{id}/report: the report that the job wrote at its end."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter

from api.context import FoundJob, InContext
from api.problems import ProblemError
from api.responses import problems

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["evaluations"])


@router.get("/report", responses=problems("not_found", "service_unavailable"))
def get_report(record: FoundJob, context: InContext) -> dict[str, Any]:
    """Score matrix with intervals, retention figures, parity, links and seconds per phase: the same as ``report.json``."""
    path = context.settings.run_dir(record.id) / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProblemError("not_found", f"job {record.name!r} is {record.status} and has no report yet") from None
    except (OSError, ValueError):
        raise ProblemError("service_unavailable", "the report cannot be read at the moment", headers={"Retry-After": "1"}) from None
