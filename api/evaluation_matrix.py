"""The evaluations of a job as a matrix with retention figures. Pure over the store's rows.

Invariant: the rows of the matrix were measured on the same problems, seeds, sampling and verifier, by the rule of report.json; what
was not is left out, and a note says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
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
    num_rows, notes, compared = _comparable(job, domains, rows, cells)
    cells = {(row, name): item for (row, name), item in cells.items() if row < num_rows}
    measured = sorted({row for row, _ in cells})
    figures, note = _retention(job, domains, cells)

    def column(field: str) -> list[list[Any]]:
        return [[getattr(cells[row, name], field) if (row, name) in cells else None for name in domains] for row in measured]

    return schemas.Evaluations(
        domains=domains,
        rows=["base" if row == 0 else job.stages[row - 1].name for row in measured],
        score_matrix=column("mean"),
        truncation_rate=column("truncation_rate"),
        notes=notes,
        retention=figures,
        retention_note=note,
        data=[
            schemas.Measurement(**evaluation_view(record, item).model_dump(), comparable=compares) for item, compares in zip(rows, compared, strict=True)
        ],
    )


def _comparable(
    job: JobSpec, domains: Sequence[str], rows: Sequence[Any], cells: Mapping[tuple[int, str], Any]
) -> tuple[int, list[str], list[bool]]:
    """How many rows may stand in the matrix, what has to be said about that, and of each measurement whether it compares with them."""
    if not rows:
        return 0, [], []
    from services.evaluation.report_comparisons import INSIDE_LEFT_OUT, comparable  # numpy: most calls to the API do without

    digests = {key: {"problems_digest": item.problems_digest} for key, item in cells.items()}
    most = max((row + 1 for row, _ in cells), default=0)
    num_rows, notes = comparable(digests, domains, most)

    def cut_off(item: Any) -> bool:
        return num_rows < most and item.row >= num_rows

    def compares(item: Any) -> bool:
        one_more = {**digests, (num_rows, item.domain): {"problems_digest": item.problems_digest}}
        return comparable(one_more, [item.domain], num_rows + 1)[0] > num_rows

    compared = [not cut_off(item) and compares(item) for item in rows]
    inside: dict[str, set[int]] = {}
    for item, kept in zip(rows, compared, strict=True):
        if item.at == "during" and not kept and not cut_off(item):  # the note on the rows speaks of what is cut off
            inside.setdefault(job.stages[item.stage_index].name, set()).add(item.step)
    notes += [
        INSIDE_LEFT_OUT.format(stage=name, steps=sorted(steps))
        for name, steps in inside.items()
    ]
    return num_rows, notes, compared


def _retention(job: JobSpec, domains: list[str], cells: Mapping[tuple[int, str], Any]) -> tuple[dict[str, Any] | None, str | None]:
    """Over the complete rows from the base model on; none before the first stage has its row. Else why there are none."""
    complete: list[dict[str, list[float]]] = []
    while all((len(complete), name) in cells for name in domains):
        complete.append({name: cells[len(complete), name].scores for name in domains})
    if len(complete) < 2:
        return None, None
    from services.evaluation.retention import retention  # scipy: a second, and most calls come before it is needed

    trained = [[part.name for part in own_domains(stage)] for stage in job.stages[: len(complete) - 1]]
    try:
        return plain(retention(complete, trained)), None
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
