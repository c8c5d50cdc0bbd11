"""One job from nothing to its report: the service where none runs, submission, watching. What ``demo`` and ``evaluate`` share."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from api.commands.console import Exit, Format, printed_step, settings, stderr, stdout

LINKS_DEADLINE_S = 20.0


@dataclass(slots=True)
class Visit:
    """A service while a command needs it."""

    started_here: bool
    code: Exit = Exit.FAILED
    """How the command ends; a job that was detached from keeps a service that was started for it."""


@contextlib.contextmanager
def running_service(configured: Any, *, keep: bool) -> Iterator[Visit]:
    """The service, started where none runs; what was started here is stopped afterwards unless it is to be kept."""
    from api.launcher import Launcher

    launcher = Launcher(configured, printed_step)
    visit = Visit(started_here=launcher.up())
    try:
        yield visit
    finally:
        if visit.started_here and not keep and visit.code is not Exit.DETACHED:
            launcher.down()


def tell_service(visit: Visit, configured: Any, *, keep: bool) -> None:
    """What became of the service, on standard error."""
    console = stderr()
    if not visit.started_here:
        console.print("The service ran before and was left running.")
    elif keep or visit.code is Exit.DETACHED:
        console.print(f"The service runs on: {configured.api_url}, MLflow {configured.mlflow_url}. holdfast down stops it.")
    else:
        console.print("The service was stopped; make up brings it back with everything it knows.")


def run_job(payload: dict[str, Any], output: Format) -> tuple[Exit, dict[str, Any] | None, dict[str, Any]]:
    """Submit, watch, print the report. Returns the job's exit code, its report where it succeeded, and the job."""
    from api.client import ApiError
    from api.commands.console import client
    from api.commands.report import report_text
    from api.commands.watch import follow

    with client() as service:
        job = service.submit(payload)
        code = follow(service, job["id"], output)
        found = None
        if code is Exit.OK:
            try:
                found = service.report(job["id"])
            except ApiError as error:
                stderr().print(f"there is no report: {error}", markup=False)
                code = Exit.FAILED
        job = _with_links(service, job["id"]) if code is Exit.OK else service.get(job["id"])
        if found is not None and output is Format.TEXT:
            print()
            stdout().print(report_text(found))
            print("\n" + "\n".join(_links(job, told=json.dumps(found.get("mlflow")))))
        return code, found, job


def _with_links(service: Any, job_id: str) -> dict[str, Any]:
    """The job once MLflow has its runs; the records are sent in the background and may come a little later than the end."""
    deadline = time.monotonic() + LINKS_DEADLINE_S
    while True:
        job = service.get(job_id)
        if all(stage.get("mlflow_url") for stage in job["stages"]) or time.monotonic() > deadline:
            return job
        time.sleep(0.5)


def _links(job: dict[str, Any], *, told: str) -> list[str]:
    """Where to look further, without what the report has told."""
    runs = [("the job", job["links"].get("mlflow")), *((stage["name"], stage.get("mlflow_url")) for stage in job["stages"])]
    lines = [f"MLflow, {name:<12} {url}" for name, url in runs if url and url not in told]
    if not job["links"].get("mlflow"):
        lines = ["MLflow has no runs of this job yet; they are sent when it answers."]
    folder = settings().run_dir(job["id"])
    return [*lines, f"report.json, models and logs: {folder.parent / job['name']}"]
