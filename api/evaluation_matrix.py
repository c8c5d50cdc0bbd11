"""The evaluations of a job as a matrix with retention figures. Pure over the store's rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from api import schemas
from api.views import evaluation_view
from cluster.errors import HoldfastError
from cluster.spec.job import JobSpec, evaluation_domains, own_domains


def evaluations_view(record: Any, rows: Sequence[Any]) -> schemas.Evaluations:
    """The last measurement of each (row, domain) at a boundary makes the matrix; ``data`` has every measurement."""
    job = JobSpec.model_validate(record.spec)
    domains = [suite.name for suite in evaluation_domains(job)]
    cells = {(item.row, item.domain): item for item in rows if item.at == "boundary"}
    measured = sorted({row for row, _ in cells})
    figures, note = _retention(job, domains, cells)
    return schemas.Evaluations(
        domains=domains,
        rows=["base" if row == 0 else job.stages[row - 1].name for row in measured],
        score_matrix=[[cells[row, name].mean if (row, name) in cells else None for name in domains] for row in measured],
        retention=figures,
        retention_note=note,
        data=[evaluation_view(record, item) for item in rows],
    )


def _retention(job: JobSpec, domains: list[str], cells: dict[tuple[int, str], Any]) -> tuple[dict[str, Any] | None, str | None]:
    """Over the complete rows from the base model on; none before the first stage has its row. Else why there are none."""
    complete: list[dict[str, list[float]]] = []
    digests: list[dict[str, str | None]] = []
    while all((len(complete), name) in cells for name in domains):
        digests.append({name: cells[len(complete), name].problems_digest for name in domains})
        complete.append({name: cells[len(complete), name].scores for name in domains})
    if len(complete) < 2:
        return None, None
    from services.evaluation.retention import retention  # scipy: a second, and most calls come before it is needed

    trained = [[part.name for part in own_domains(stage)] for stage in job.stages[: len(complete) - 1]]
    try:
        return plain(retention(complete, trained, problem_digests=digests)), None
    except HoldfastError as error:
        return None, error.message


def plain(value: Any) -> Any:
    """Dataclasses and arrays as JSON values; what is not finite becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
