"""``holdfast report``: the score matrix, what was gained, what it cost elsewhere, and where the model lies."""

from __future__ import annotations

from typing import Any

from api.commands.console import Format, Output, client, emit, guard
from api.commands.job import JobName


def report(job: JobName, output: Output = Format.TEXT) -> None:
    """Print the report of a job; of an unfinished one, the scores, drift and signs of collapse so far."""
    with guard(output), client() as service:
        found = fetch(service, job)
    emit(output, found, lambda: report_text(found))


def fetch(service: Any, job: str) -> dict[str, Any]:
    """report.json, or what is known so far where the job has not written one yet."""
    from api.client import ApiError
    from api.commands.report_so_far import so_far

    try:
        return service.report(job)
    except ApiError as error:
        if error.code != "not_found":
            raise
    return so_far(service, job)


def report_text(found: dict[str, Any]) -> Any:
    from rich.text import Text

    if found.get("object") == "evaluations":
        from api.commands.report_so_far import text_so_far

        return Text(text_so_far(found))
    from services.evaluation.report import render_text

    return Text(render_text(found))
