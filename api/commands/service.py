"""``holdfast up``, ``down``, ``status`` and ``doctor``."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from api.commands.console import Exit, Format, Output, emit, guard, leave, printed_step, settings


def up(
    expose: Annotated[bool, typer.Option("--expose", help="allow HOLDFAST_API_HOST to be an address that other machines can reach")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Start the service: Ray, job store, scheduler, HTTP API, MLflow. What runs already is left alone."""
    from api.launcher import Launcher

    with guard(output):
        configured, started = settings(), time.monotonic()
        launcher = Launcher(configured, printed_step)
        changed = launcher.up(expose=expose)
    data = {"status": "up", "changed": changed, "seconds": round(time.monotonic() - started, 1), **addresses(configured)}
    if launcher.new_api_key:
        data["api_key"] = launcher.new_api_key
    emit(output, data, lambda: _up_text(data))


def addresses(configured: Any) -> dict[str, Any]:
    """Where the parts are."""
    return {
        "api": configured.api_url,
        "docs": f"{configured.api_url}/docs",
        "mlflow": configured.mlflow_url,
        "home": str(configured.home.absolute()),
        "api_key_file": str(configured.api_key_file),
        "logs": str(configured.logs),
    }


def _up_text(data: dict[str, Any]) -> str:
    first = f"Holdfast is up ({data['seconds']} s)." if data["changed"] else "Holdfast is up already; nothing was changed."
    lines = [first, f"  API     {data['api']}", f"  MLflow  {data['mlflow']}", f"  home    {data['home']}", f"  key     {data['api_key_file']}"]
    if "api_key" in data:
        lines.append(f"  The key was made now and is shown this once: {data['api_key']}")
    return "\n".join(lines)


def down(output: Output = Format.TEXT) -> None:
    """Stop the service. Jobs that are not finished keep their place and go on at the next start."""
    from api.launcher import Launcher

    with guard(output):
        started = time.monotonic()
        was_up = Launcher(settings(), printed_step).down()
    data = {"status": "down", "changed": was_up, "seconds": round(time.monotonic() - started, 1)}
    emit(output, data, lambda: f"Holdfast is down ({data['seconds']} s)." if was_up else "Holdfast was not running.")


def status(output: Output = Format.TEXT) -> None:
    """Say which parts of the service answer, what they use, and what is queued or running."""
    from api import processes
    from api.launcher import Launcher

    with guard(output):
        configured = settings()
        parts = Launcher(configured).parts()
    own = processes.own_processes(configured)
    data = {
        "status": "up" if parts.all else "partly up" if own else "down",
        "parts": {"ray": parts.ray, "mlflow": parts.mlflow, "api": parts.api, "scheduler": parts.scheduler},
        "processes": len(own),
        "memory_bytes": processes.memory_bytes(configured) if own else 0,
        "jobs": _job_counts() if parts.api else {},
        **addresses(configured),
    }
    emit(output, data, lambda: _status_text(data))
    leave(Exit.OK if parts.all else Exit.UNREACHABLE)


def _job_counts() -> dict[str, int]:
    """How many jobs are waiting or at work."""
    from api.client import ApiError
    from api.commands.console import client

    counts: dict[str, int] = {}
    try:
        with client() as service:
            for state in ("queued", "starting", "running", "pausing", "paused", "cancelling"):
                if found := len(service.list(status=state, limit=100)["data"]):
                    counts[state] = found
    except ApiError:
        return {}
    return counts


def _status_text(data: dict[str, Any]) -> str:
    marks = {True: "[green]ok[/green]  ", False: "[red]down[/red]"}
    where = {"ray": "cluster", "mlflow": data["mlflow"], "api": data["api"], "scheduler": "queue and attempts"}
    lines = [f"Holdfast is {data['status']}."]
    lines += [f"  {marks[up]}  {name:<10} {where[name]}" for name, up in data["parts"].items()]
    lines.append(f"  {data['processes']} processes, {data['memory_bytes'] / 2**30:.1f} GiB; home {data['home']}")
    if data["jobs"]:
        lines.append("  jobs: " + ", ".join(f"{count} {state}" for state, count in data["jobs"].items()))
    return "\n".join(lines)


def doctor(output: Output = Format.TEXT) -> None:
    """Check this machine and the service, and say what to do about what is wrong."""
    from api.doctor import examine

    with guard(output):
        checks = examine(settings())
    worst = "fail" if any(check.state == "fail" for check in checks) else "warn" if any(check.state == "warn" for check in checks) else "ok"
    data = {"status": worst, "checks": [check.as_dict() for check in checks]}
    emit(output, data, lambda: _doctor_text(data))
    leave(Exit.FAILED if worst == "fail" else Exit.OK)


def _doctor_text(data: dict[str, Any]) -> Any:
    from rich.markup import escape

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    lines = []
    for check in data["checks"]:
        colour = colours[check["state"]]
        lines.append(f"[{colour}]{check['state']:<4}[/{colour}]  {check['name']:<16} {escape(check['detail'])}")
        if check["fix"]:
            lines.append(f"                        -> {escape(check['fix'])}")
    return "\n".join(lines)
