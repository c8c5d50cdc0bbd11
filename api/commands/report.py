"""``holdfast report``: the score matrix, what was gained and lost, and where the model lies."""

from __future__ import annotations

from typing import Any

from api.commands.console import Format, Output, client, emit, guard
from api.commands.job import JobName


def report(job: JobName, output: Output = Format.TEXT) -> None:
    """Print the report of a job; of an unfinished one, the scores measured so far."""
    with guard(output), client() as service:
        found = fetch(service, job)
    emit(output, found, lambda: report_text(found))


def fetch(service: Any, job: str) -> dict[str, Any]:
    """report.json, or the evaluations where the job has not written one yet."""
    from api.client import ApiError

    try:
        return service.report(job)
    except ApiError as error:
        if error.code != "not_found":
            raise
    return service.evaluations(job)


def report_text(found: dict[str, Any]) -> Any:
    from rich.text import Text

    if found.get("object") == "evaluations":
        return _so_far(found)
    from services.evaluation.report import render_text

    return Text(render_text(found))


def _so_far(evaluations: dict[str, Any]) -> Any:
    """Means alone: intervals come with the report."""
    from rich.table import Table

    matrix = evaluations["score_matrix"]
    means = matrix["means"] if isinstance(matrix, dict) else matrix
    rows, domains = (matrix["rows"], matrix["domains"]) if isinstance(matrix, dict) else (evaluations["rows"], evaluations["domains"])
    if not rows:
        return "Nothing has been evaluated yet."
    table = Table(title="The job has not ended; scores so far", box=None, pad_edge=False, title_justify="left")
    for name in ("after", *domains):
        table.add_column(name)
    for name, values in zip(rows, means, strict=False):
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    return table
