"""``holdfast watch``: follow a job to its end.

Invariant: watching only reads. Ctrl-C, a closed terminal or a lost connection never touches the job.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

from api.commands.console import BY_STATUS, Exit, Format, Output, client, guard, leave, stderr
from api.commands.job import JobName
from api.commands.log import all_events, event_line

POLL_S = 1.0
PLAIN_EVERY_S = 15.0
_NUMBER = re.compile(r"(loss|score) (-?[0-9.]+(?:e-?[0-9]+)?)")


def watch(job: JobName, output: Output = Format.TEXT) -> None:
    """Show a job's progress, stage by stage, until it ends. Ctrl-C leaves the job alone."""
    code = Exit.OK
    with guard(output), client() as service:
        code = follow(service, job, output)
    leave(code)


def follow(service: Any, job: str, output: Format) -> Exit:
    """Watch a job to its end; returns the exit code that its outcome stands for."""
    found = service.get(job)
    shown = _JsonView() if output is Format.JSON else _LiveView(found) if sys.stdout.isatty() else _PlainView(found)
    try:
        with shown:
            for latest, events in _changes(service, found["id"]):
                found = latest
                shown.update(found, events)
    except KeyboardInterrupt:
        stderr().print(f"Detached; the job goes on. holdfast watch {found['id']} shows it again, holdfast cancel {found['id']} ends it.")
        return Exit.DETACHED
    if output is Format.JSON:
        print(json.dumps({"job": found}), flush=True)
    else:
        print(outcome(found))
    return BY_STATUS[found["status"]]


def _changes(service: Any, job_id: str) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The job and its new events, once a second, until it has ended or is paused; the last events come with the end."""
    seen = 0
    while True:
        found = service.get(job_id)
        events = list(all_events(service, job_id, after=seen))
        seen = events[-1]["seq"] if events else seen
        yield found, events
        if found["status"] in BY_STATUS:
            return
        time.sleep(POLL_S)


def outcome(job: dict[str, Any]) -> str:
    """The last line of a watched job."""
    text = f"{job['name']} ({job['id']}) {job['status']}"
    if job.get("message") and job["status"] != "succeeded":
        text += f": {job['message']}"
    hint = {"succeeded": "report", "failed": "logs", "paused": "resume"}.get(job["status"])
    return f"{text}\n  holdfast {hint} {job['id']}" if hint else text


def numbers(stage: dict[str, Any]) -> dict[str, float]:
    """Loss and score of the stage's last step, from its message."""
    return {name: float(value) for name, value in _NUMBER.findall(stage.get("message") or "")}


class _JsonView:
    """One object per event and per step that was seen; for programs."""

    def __init__(self) -> None:
        self._told: Any = None

    def __enter__(self) -> _JsonView:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, job: dict[str, Any], events: list[dict[str, Any]]) -> None:
        for event in events:
            print(json.dumps({"event": event}, default=str), flush=True)
        progress = {"status": job["status"], **job["progress"]}
        if progress != self._told:
            print(json.dumps({"progress": progress}), flush=True)
            self._told = progress


class _PlainView:
    """Lines, for files and pipes: every event, and where the running stage stands now and then."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._next = 0.0
        print(f"watching {job['name']} ({job['id']}), {job['status']}", flush=True)

    def __enter__(self) -> _PlainView:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, job: dict[str, Any], events: list[dict[str, Any]]) -> None:
        for event in events:
            if wanted(event):
                print(event_line(event), flush=True)
        running = next((stage for stage in job["stages"] if stage["status"] == "running"), None)
        if running and time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_EVERY_S
            print(f"         {running['name']} {running['step']}/{running['total_steps']}  {running.get('message') or ''}".rstrip(), flush=True)


def wanted(event: dict[str, Any]) -> bool:
    """Checkpoints are many and of no interest while all is well."""
    return event["type"] not in ("checkpoint.saved", "checkpoint.committed")


class _LiveView:
    """A bar per stage, events above them."""

    def __init__(self, job: dict[str, Any]) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[state]}"),
        )
        self._tasks = {
            stage["name"]: self._progress.add_task(stage["name"], total=stage["total_steps"], start=False, numbers="", state=stage["status"])
            for stage in job["stages"]
        }
        self._started: set[str] = set()

    def __enter__(self) -> _LiveView:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, job: dict[str, Any], events: list[dict[str, Any]]) -> None:
        for event in events:
            if wanted(event):
                self._progress.console.print(event_line(event), markup=False, highlight=False)
        for stage in job["stages"]:
            self._show(stage)

    def _show(self, stage: dict[str, Any]) -> None:
        task, name = self._tasks[stage["name"]], stage["name"]
        if stage["status"] == "running" and name not in self._started:
            self._started.add(name)
            self._progress.start_task(task)
        found = numbers(stage)
        text = f"reward {found['score']:.3f}  " if "score" in found else ""
        text += f"loss {found['loss']:+.4f}" if "loss" in found else ""
        self._progress.update(task, completed=stage["step"], numbers=text, state=stage["status"])
        if stage["status"] in ("succeeded", "failed", "cancelled", "skipped"):
            self._progress.stop_task(task)
