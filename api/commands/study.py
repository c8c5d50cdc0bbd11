"""``holdfast study``: many jobs of one file, steered and reported together.

``validate`` and ``report`` of a file work with no service running.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from api.commands import study_file
from api.commands.console import (
    BY_STATUS,
    EXIT_CODES,
    Exit,
    Format,
    Output,
    Refused,
    client,
    emit,
    guard,
    leave,
    settings,
    stderr,
)
from api.commands.files import Changes
from api.commands.study_run import run
from api.commands.study_text import FINISHED, member_lines, plan_text, progress_line, studies_table, study_text

StudyName = Annotated[str, typer.Argument(help="a study's id, or its name (the newest of that name)", show_default=False)]
StudyFile = Annotated[Path, typer.Argument(help="the study file, YAML or JSON", show_default=False)]
Records = Annotated[Path | None, typer.Option("--records", help="folder of study records; members that one of them stands for are not run")]
POLL_S = 2.0
PLAIN_EVERY_S = 30.0

app = typer.Typer(help="Studies: arms x orders x seeds of one base job.", no_args_is_help=True, epilog=EXIT_CODES)
app.command()(run)


@app.command()
def submit(
    file: StudyFile,
    changes: Changes = None,
    records: Records = None,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="watch the study to its end; the exit code is its outcome")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="let the service check it and show the plan; nothing is stored")] = False,
    idempotency_key: Annotated[str | None, typer.Option("--idempotency-key", help="repeating a submission with this key gives the first one's study")] = None,
    output: Output = Format.TEXT,
) -> None:
    """Submit a study file: every member becomes a queued job."""
    code = Exit.OK
    with guard(output):
        payload, known = study_file.read(file, changes or ()), study_file.records(records)
        folders = [Path.cwd(), file.parent]
        with client(timeout_s=300.0) as service:
            if dry_run:
                plan = service.validate_study(payload, records=known, folders=folders)
                emit(output, plan, lambda: plan_text(str(file), plan))
                return
            study = service.submit_study(payload, records=known, folders=folders, idempotency_key=idempotency_key)
            if not watch or output is Format.TEXT:
                emit(output, study, lambda: study_text(study, members=False))
            if watch:
                code = follow(service, study["id"], output)
    leave(code)


@app.command()
def validate(file: StudyFile, changes: Changes = None, records: Records = None, output: Output = Format.TEXT) -> None:
    """Check a study file and every job in it, and list every fault. Nothing is sent."""
    with guard(output):
        plan = study_file.check(study_file.read(file, changes or ()), study_file.records(records), [Path.cwd(), file.parent], settings())
    document = plan.model_dump(mode="json")
    emit(output, document, lambda: plan_text(str(file), document))


@app.command("list")
def list_studies(
    name: Annotated[str | None, typer.Option(help="only studies of this name")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    output: Output = Format.TEXT,
) -> None:
    """List studies, the newest first."""
    with guard(output), client() as service:
        page = service.studies(name=name, limit=limit)
    emit(output, page, lambda: studies_table(page))


@app.command()
def show(study: StudyName, output: Output = Format.TEXT) -> None:
    """Show a study and its members."""
    with guard(output), client() as service:
        found = service.study(study)
    emit(output, found, lambda: study_text(found))


@app.command()
def watch(study: StudyName, output: Output = Format.TEXT) -> None:
    """Show a study's progress, member by member, until it ends. Ctrl-C leaves the study alone."""
    code = Exit.OK
    with guard(output), client() as service:
        code = follow(service, study, output)
    leave(code)


def follow(service: Any, study: str, output: Format, after_look: Callable[[dict[str, Any], bool], None] | None = None) -> Exit:
    """Watch a study until it has ended or is paused; returns the exit code that its outcome stands for.

    ``after_look`` is called with the study after every look, and whether a member ended since the one before.
    """
    import json

    known: dict[int, str] = {}
    told, ended = 0.0, 0
    found = service.study(study)
    try:
        while True:
            lines = member_lines(found["members"], known)
            if output is Format.TEXT:
                if time.monotonic() - told >= PLAIN_EVERY_S or lines:
                    told = time.monotonic()
                    lines.append(progress_line(found))
                for line in lines:
                    print(line, flush=True)
            before, ended = ended, sum(member["status"] in FINISHED for member in found["members"])
            if after_look is not None:
                after_look(found, ended != before)
            if found["status"] in BY_STATUS:
                break
            time.sleep(POLL_S)
            found = service.study(found["id"])
    except KeyboardInterrupt:
        stderr().print(f"Detached; the study goes on. holdfast study watch {found['id']} shows it again, holdfast study cancel {found['id']} ends it.")
        return Exit.DETACHED
    if output is Format.JSON:
        print(json.dumps(found), flush=True)
    return BY_STATUS[found["status"]]


@app.command()
def cancel(
    study: StudyName,
    now: Annotated[bool, typer.Option("--now", help="at once, instead of at the next step with a checkpoint")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Ask for the end of every member that has not ended."""
    with guard(output), client() as service:
        found = service.cancel_study(study, mode="now" if now else "graceful")
    emit(output, found, lambda: study_text(found))


@app.command()
def pause(study: StudyName, output: Output = Format.TEXT) -> None:
    """Stop running members at their next step, with a checkpoint, and hold the queued ones."""
    with guard(output), client() as service:
        found = service.pause_study(study)
    emit(output, found, lambda: study_text(found))


@app.command()
def resume(study: StudyName, output: Output = Format.TEXT) -> None:
    """Go on with paused members, and queue failed and cancelled ones again."""
    with guard(output), client() as service:
        found = service.resume_study(study)
    emit(output, found, lambda: study_text(found))


@app.command()
def records(
    study: StudyName,
    to: Annotated[Path, typer.Option("--to", help="folder for <arm>/<order>-<seed>.json; files that would not change are left alone")],
    output: Output = Format.TEXT,
) -> None:
    """Write one file for each member that has ended; with these the study goes on, or is reported, on another machine."""
    from services.jobs.study_records import write_records

    with guard(output), client(timeout_s=300.0) as service:
        found = service.study_records(study)
        written = write_records(found, to, tell=lambda path: stderr().print(f"a record of another run of this member was moved to {path}", markup=False))
    emit(output, {"records": len(found), "written": [str(path) for path in written]}, lambda: f"{len(found)} records, {len(written)} written under {to}")


@app.command()
def report(
    study: Annotated[str, typer.Argument(help="a study's id or name, or a study file with --records", show_default=False)],
    records: Annotated[Path | None, typer.Option("--records", help="folder of study records; then STUDY is a file and no service is needed")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="also write one page with all plots")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="also write the tables as Markdown")] = None,
    output: Output = Format.TEXT,
) -> None:
    """Figures of every arm and verdicts on the hypotheses, from the members that have ended."""
    with guard(output):
        if records is not None or Path(study).is_file():
            if records is None:
                raise Refused(f"{study} is a file; name the folder of its records with --records")
            found = study_file.report(Path(study), study_file.records(records))
        else:
            with client(timeout_s=300.0) as service:
                found = service.study_report(study)
        if html is not None:
            study_file.write_page(found, html)
        if markdown is not None:
            study_file.write_markdown(found, markdown)
    emit(output, found, lambda: study_file.report_text(found))
