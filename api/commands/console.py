"""What every command shares: JSON or text, exit codes, and errors that read well.

Invariant: with ``-o json`` standard output holds JSON and nothing else; progress and warnings go to standard error.
"""

from __future__ import annotations

import contextlib
import enum
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer


class Exit(enum.IntEnum):
    """The meaning of ``holdfast``'s exit codes."""

    OK = 0
    FAILED = 1
    REFUSED = 2
    CANCELLED = 3
    UNREACHABLE = 4
    PAUSED = 5
    DETACHED = 130


EXIT_CODES = """Exit codes: 0 done, or the job succeeded; 1 the job or the command failed; 2 usage or input that was refused; 3 the job was
cancelled; 4 the service is not running or not reachable; 5 the job is paused; 130 detached with Ctrl-C (the job goes on)."""

BY_STATUS = {"succeeded": Exit.OK, "failed": Exit.FAILED, "cancelled": Exit.CANCELLED, "paused": Exit.PAUSED}


class Format(enum.StrEnum):
    TEXT = "text"
    JSON = "json"


Output = Annotated[Format, typer.Option("--output", "-o", help="text, or json for programs")]


class Refused(Exception):
    """Input that a command will not take; ``faults`` have a pointer and a detail."""

    def __init__(self, message: str, faults: list[dict[str, Any]] | None = None):
        super().__init__(message)
        self.faults = faults or []


def emit(output: Format, data: Any, text: Callable[[], Any] | None = None) -> None:
    """Print ``data`` as JSON, or what ``text`` returns (anything that rich can print; None prints nothing)."""
    if output is Format.JSON:
        print(json.dumps(data, indent=2, default=str))
    elif text is not None:
        shown = text()
        if shown is not None:
            stdout().print(shown)


def stdout() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def stderr() -> Any:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def leave(code: Exit) -> None:
    """End the command; OK ends it by returning."""
    if code is not Exit.OK:
        raise typer.Exit(int(code))


@contextlib.contextmanager
def guard(output: Format) -> Iterator[None]:
    """Turns the errors that a user can meet into a message and an exit code; anything else is a bug and shows itself."""
    from api.client import ApiError
    from cluster.errors import HoldfastError

    try:
        yield
    except Refused as error:
        _fail(output, Exit.REFUSED, str(error), "refused", error.faults)
    except ApiError as error:
        _fail(output, _api_exit(error), str(error.problem.get("detail") or error), error.code, error.errors)
    except HoldfastError as error:
        code = Exit.REFUSED if error.reason in ("invalid_spec", "port_taken", "not_loopback") else Exit.FAILED
        faults = [fault for fault in error.details.get("faults", []) if isinstance(fault, dict)]
        _fail(output, code, error.message, error.reason, faults)


def _api_exit(error: Any) -> Exit:
    if error.status in (0, 503) or error.code in ("unreachable", "no_api_key"):
        return Exit.UNREACHABLE
    return Exit.REFUSED if error.status < 500 else Exit.FAILED


def _fail(output: Format, code: Exit, message: str, reason: str, faults: list[dict[str, Any]]) -> None:
    if output is Format.JSON:
        print(json.dumps({"error": {"reason": reason, "message": message, "faults": faults, "exit_code": int(code)}}, indent=2))
    else:
        console = stderr()
        console.print("[bold red]error:[/bold red]", end=" ")
        console.print(message, markup=False)
        for fault in faults:
            console.print(f"  {fault.get('pointer') or '/'}: {fault.get('detail')}", markup=False)
        if code is Exit.UNREACHABLE:
            console.print("  Is the service running? holdfast status says so, holdfast up starts it.", markup=False)
    raise typer.Exit(int(code))


@contextlib.contextmanager
def printed_step(title: str) -> Iterator[Any]:
    """One line per step of a start or a stop, on standard error, with the seconds it took."""
    from api.launcher import Detail

    console, detail, started = stderr(), Detail(), time.monotonic()
    with console.status(f"{title} ...") if console.is_terminal else contextlib.nullcontext():
        try:
            yield detail
        except BaseException:
            console.print(f"[red]failed[/red]  {title}")
            raise
    console.print(f"[green]ok[/green]  {title:<20} {time.monotonic() - started:5.1f} s  [dim]{detail.text}[/dim]")


def settings() -> Any:
    """The settings of this environment; refuses values that do not fit, naming the variable."""
    from pydantic import ValidationError

    from cluster.settings import Settings

    try:
        return Settings()
    except ValidationError as error:
        faults = [{"pointer": "HOLDFAST_" + str(item["loc"][0]).upper(), "detail": f"{item['input']!r}: {item['msg']}"} for item in error.errors()]
        raise Refused("the environment holds settings that do not fit", faults) from None


def client(**options: Any) -> Any:
    """A client of this installation."""
    from api.client import HoldfastClient

    return HoldfastClient.from_settings(settings(), retries=3, **options)
