"""``holdfast study run``: a study from nothing to its page, with its records on disk all the while.

Invariant: whatever ends this command, the members that had ended have their records in the folder; the next call goes on from them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from api.client import ApiError
from api.commands import study_file
from api.commands.console import BY_STATUS, Exit, Format, Output, client, guard, leave, settings, stderr, stdout
from api.commands.files import Changes
from api.commands.study_text import unmatched_lines

UNFINISHED = ("queued", "running", "paused")
StudyFile = Annotated[Path, typer.Argument(help="the study file, YAML or JSON", show_default=False)]


def run(
    file: StudyFile,
    changes: Changes = None,
    records: Annotated[Path | None, typer.Option("--records", help="folder of records, read first and written as members end; otherwise <file without suffix>/records")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="the page with all plots; otherwise beside the records")] = None,
    for_minutes: Annotated[float | None, typer.Option("--for-minutes", min=0.1, help="then pause the study; the next call goes on")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="leave the service running")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Start the service, run what has no record yet, write records and report, stop the service."""
    from api.commands.whole_run import running_service, tell_service

    folder = records or file.with_suffix("") / "records"
    page = html or folder.parent / "report.html"
    started = time.monotonic()
    with guard(output):
        payload, known = study_file.read(file, changes or ()), study_file.records(folder)
        configured = settings()
        with running_service(configured, keep=keep) as visit, client(timeout_s=300.0) as service:
            study = _begin(service, payload, known, [Path.cwd(), file.parent])
            try:
                visit.code = _follow(service, study["id"], folder, output, for_minutes)
            finally:
                _write(service, study["id"], folder)
        found = study_file.report(file, study_file.records(folder), changes or ())
        study_file.write_page(found, page)
    seconds = time.monotonic() - started
    if output is Format.JSON:
        print(json.dumps({"study": study["id"], "report": found, "seconds": round(seconds, 1), "exit_code": int(visit.code)}, default=str))
    else:
        stdout().print(study_file.report_text(found))
        print(f"\nThe page with the plots: {page}; the records: {folder}")
        print(f"{seconds:.0f} s ({seconds / 60:.1f} minutes).")
    tell_service(visit, configured, keep=keep)
    leave(visit.code)


def _begin(service: Any, payload: dict[str, Any], known: list[dict[str, Any]], folders: list[Path]) -> dict[str, Any]:
    """Go on with this very study where the service has it unfinished; otherwise submit it with its records."""
    plan = service.validate_study(payload, records=known, folders=folders)
    for line in unmatched_lines(plan["unmatched_records"]):
        stderr().print(line)
    newest = next(iter(service.studies(name=plan["name"], limit=1)["data"]), None)
    if newest is not None and newest["spec_hash"] == plan["spec_hash"] and newest["status"] in UNFINISHED:
        return service.resume_study(newest["id"]) if newest["status"] == "paused" else newest
    return service.submit_study(payload, records=known, folders=folders)


def _follow(service: Any, study: str, folder: Path, output: Format, for_minutes: float | None) -> Exit:
    """Watch to the end, writing records as members end; pause when the time is over."""
    from api.commands.study import follow

    deadline = None if for_minutes is None else time.monotonic() + 60.0 * for_minutes
    asked = False

    def after_each_look(found: dict[str, Any], ended: bool) -> None:
        nonlocal asked
        if ended:
            _write(service, study, folder)
        if deadline is not None and not asked and time.monotonic() > deadline and found["status"] not in BY_STATUS:
            asked = True
            try:
                service.pause_study(study)
            except ApiError as error:
                if error.code != "illegal_transition":
                    raise
                return  # the last member has ended since the look
            stderr().print(f"the time is over; members that run are paused at their next step ({found['status']})", markup=False)

    return follow(service, study, output, after_each_look)


def _write(service: Any, study: str, folder: Path) -> None:
    from services.jobs.study_records import write_records

    write_records(service.study_records(study), folder, tell=_tell_replaced)


def _tell_replaced(path: Path) -> None:
    stderr().print(f"a record of another run of this member was moved to {path}", markup=False)

