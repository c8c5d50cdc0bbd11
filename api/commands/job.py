"""``holdfast submit``, ``ls``, ``show``, ``cancel``, ``pause`` and ``resume``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import typer

from api.commands.console import Exit, Format, Output, client, emit, guard, leave, settings
from api.commands.files import Changes, JobFile

JobName = Annotated[str, typer.Argument(help="a job's id, or its name (the newest of that name)", show_default=False)]


def submit(
    file: JobFile,
    changes: Changes = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="watch the job to its end; the exit code is its outcome")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="let the service check it and show the plan; nothing is stored")] = False,
    idempotency_key: Annotated[str | None, typer.Option("--idempotency-key", help="repeating a submission with this key gives the first one's job")] = None,
    output: Output = Format.TEXT,
) -> None:
    """Submit a job file, and watch the job unless --no-wait."""
    from api.commands import job_file
    from api.commands.files import plan_text
    from api.commands.watch import follow

    code = Exit.OK
    with guard(output):
        payload = job_file.load(file, changes or ())
        with client() as service:
            if dry_run:
                plan = service.validate(payload)
                emit(output, plan, lambda: plan_text(str(file), plan))
                return
            job = service.submit(payload, idempotency_key=idempotency_key)
            if not wait:
                emit(output, job, lambda: f"{job['id']} ({job['name']}) is {job['status']}; holdfast watch {job['id']}")
                return
            code = follow(service, job["id"], output)
    leave(code)


def ls(
    status: Annotated[str | None, typer.Option(help="only jobs in this state")] = None,
    name: Annotated[str | None, typer.Option(help="only jobs of this name")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    output: Output = Format.TEXT,
) -> None:
    """List jobs, the newest first."""
    with guard(output), client() as service:
        page = service.list(status=status, name=name, limit=limit)
    emit(output, page, lambda: _jobs_table(page))


def _jobs_table(page: dict[str, Any]) -> Any:
    from rich.table import Table

    if not page["data"]:
        return "No jobs."
    table = Table(box=None, pad_edge=False)
    for name in ("job", "name", "status", "stages", "steps", "created", "took"):
        table.add_column(name, overflow="fold" if name == "job" else "ellipsis", no_wrap=name == "status")
    for job in page["data"]:
        progress = job["progress"]
        table.add_row(
            job["id"],
            job["name"],
            coloured(job["status"]),
            f"{progress['stages_done']}/{progress['stages_total']}",
            f"{progress['steps_done']}/{progress['steps_total']}",
            str(job["created_at"])[:19].replace("T", " "),
            took(job),
        )
    return table


def coloured(status: str) -> str:
    colour = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}.get(status)
    return f"[{colour}]{status}[/{colour}]" if colour else status


def took(job: dict[str, Any]) -> str:
    """From start to end, or - while there is no end."""
    if not job.get("started_at") or not job.get("finished_at"):
        return "-"
    seconds = (datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(job["started_at"])).total_seconds()
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def show(job: JobName, output: Output = Format.TEXT) -> None:
    """Show one job: state, stages, links."""
    with guard(output), client() as service:
        found = service.get(job)
    emit(output, found, lambda: _job_text(found))


def _job_text(job: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    head = f"[bold]{job['name']}[/bold]  {job['id']}  {coloured(job['status'])}"
    if job.get("desired_status") and job["desired_status"] != job["status"]:
        head += f" ({job['desired_status']} was asked for)"
    lines: list[Any] = [head]
    if job.get("message"):
        lines.append(escape(f"{job['reason']}: {job['message']}" if job.get("reason") else job["message"]))
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "status", "steps", "last step"):
        table.add_column(name)
    for stage in job["stages"]:
        table.add_row(stage["name"], coloured(stage["status"]), f"{stage['step']}/{stage['total_steps']}", stage.get("message") or "")
    lines += [table, f"created {job['created_at']}, started {job['started_at'] or '-'}, finished {job['finished_at'] or '-'} ({took(job)})"]
    if job["links"].get("mlflow"):
        lines.append(f"MLflow {job['links']['mlflow']}")
    lines.append(f"files  {settings().run_dir(job['id'])}")
    return Group(*lines)


def cancel(
    job: JobName,
    now: Annotated[bool, typer.Option("--now", help="at once, instead of at the next step with a checkpoint")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Ask for a job's end. A finished job cannot be cancelled."""
    with guard(output), client() as service:
        found = service.cancel(job, mode="now" if now else "graceful")
    emit(output, found, lambda: f"{found['id']} is {found['status']}; it ends {'now' if now else 'at its next step'}.")


def pause(job: JobName, output: Output = Format.TEXT) -> None:
    """Stop a job at its next step, with a checkpoint, and free what it holds."""
    with guard(output), client() as service:
        found = service.pause(job)
    emit(output, found, lambda: f"{found['id']} is {found['status']}; holdfast resume {found['id']} continues it.")


def resume(job: JobName, output: Output = Format.TEXT) -> None:
    """Continue a paused job from its last checkpoint."""
    with guard(output), client() as service:
        found = service.resume(job)
    emit(output, found, lambda: f"{found['id']} is {found['status']}.")
