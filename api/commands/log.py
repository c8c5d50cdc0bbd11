"""``holdfast logs`` and ``holdfast events``."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from api.commands.console import Exit, Format, Output, client, emit, guard, leave, stderr
from api.commands.job import JobName

Follow = Annotated[bool, typer.Option("--follow", "-f", help="go on until the job has ended")]


def logs(
    job: JobName,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="how many of the last lines")] = 200,
    follow: Follow = False,
    output: Output = Format.TEXT,
) -> None:
    """Print the output of a job's processes."""
    with guard(output), client() as service:
        try:
            if not follow:
                text = service.logs(job, tail=tail)
                if output is Format.JSON:
                    emit(output, {"job": job, "lines": text.splitlines()})
                else:
                    sys.stdout.write(text)
                return
            for piece in service.follow_logs(job, tail=tail):
                for line in piece.splitlines(keepends=True):
                    sys.stdout.write(json.dumps({"line": line.rstrip("\n")}) + "\n" if output is Format.JSON else line)
                sys.stdout.flush()
        except KeyboardInterrupt:
            stderr().print("Detached; the job goes on.")
            leave(Exit.DETACHED)


def events(
    job: JobName,
    after: Annotated[int, typer.Option(min=0, help="only events with a larger number")] = 0,
    follow: Follow = False,
    output: Output = Format.TEXT,
) -> None:
    """Print what happened to a job, in order. With -o json one object per line."""
    with guard(output), client() as service:
        try:
            found = service.stream(job, after=after) if follow else all_events(service, job, after=after)
            for event in found:
                print(json.dumps(event, default=str) if output is Format.JSON else event_line(event), flush=True)
        except KeyboardInterrupt:
            stderr().print("Detached; the job goes on.")
            leave(Exit.DETACHED)


def all_events(service: Any, job: str, *, after: int = 0):
    """Every event that there is now, page by page."""
    while True:
        page = service.events(job, after=after, limit=100)
        yield from page["data"]
        if not page["has_more"] or not page["data"]:
            return
        after = page["data"][-1]["seq"]


def event_line(event: dict[str, Any]) -> str:
    """One event as one line of text."""
    level = "" if event.get("level", "info") == "info" else f" {str(event['level']).upper()}"
    time = str(event.get("created_at", ""))[11:19]
    return f"{time}{level} {event['type']:<22} {event.get('message') or ''}".rstrip()
