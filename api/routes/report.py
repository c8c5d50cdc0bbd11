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
    """The same as ``report.json``: score matrix with intervals and retention figures, each stage's gain and what it cost elsewhere.

    ``during``: scores inside stages. ``drift``: ``parameters`` (against the base model and the stage's start), ``responses``
    (KL in nats per token and cosines of the answers to fixed probes, by domain and role: own, earlier, other) and
    ``domain_distances`` (MMD squared). ``collapse``: ``warnings`` as they were raised and cleared, and ranges of the metrics by
    stage. Sections of what was not measured are empty. Also parity, links and seconds per phase.
    """
    path = context.settings.run_dir(record.id) / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ProblemError("not_found", f"job {record.name!r} is {record.status} and has no report yet") from None
    except (OSError, ValueError):
        raise ProblemError("service_unavailable", "the report cannot be read at the moment", headers={"Retry-After": "1"}) from None
