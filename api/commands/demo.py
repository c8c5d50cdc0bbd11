"""``holdfast demo``: a continual training job through the whole service, measured."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from api.commands.console import Exit, Format, Output, guard, leave, printed_step, settings, stderr, stdout

ROOT = Path(__file__).resolve().parents[2]
DEMO_FILE = ROOT / "deploy" / "jobs" / "demo.yaml"
SAMPLE_EVERY_S = 2.0
LINKS_DEADLINE_S = 20.0


class MemoryPeak(threading.Thread):
    """The largest sum of proportional set sizes over every process of the service and this one."""

    def __init__(self, configured: Any):
        super().__init__(name="memory-peak", daemon=True)
        self._settings = configured
        self._done = threading.Event()
        self.peak_bytes = 0

    def run(self) -> None:
        from api.processes import memory_bytes

        while not self._done.wait(SAMPLE_EVERY_S):
            self.peak_bytes = max(self.peak_bytes, memory_bytes(self._settings))

    def stop(self) -> int:
        self._done.set()
        self.join(timeout=30)
        return self.peak_bytes


def demo(
    file: Annotated[Path, typer.Option("--file", help="another job file")] = DEMO_FILE,
    keep: Annotated[bool, typer.Option("--keep", help="leave the service running")] = False,
    output: Output = Format.TEXT,
) -> None:
    """Start the service, run the demonstration job, print its report, stop the service. The exit code is the job's outcome."""
    from api.launcher import Launcher

    console, started = stderr(), time.monotonic()
    with guard(output):
        configured = settings()
        peak = MemoryPeak(configured)
        peak.start()
        launcher = Launcher(configured, printed_step)
        started_here = launcher.up()
        code = Exit.FAILED
        try:
            code, found, job = _run(file, output)
        finally:
            if started_here and not keep and code is not Exit.DETACHED:
                launcher.down()
            peak_bytes = peak.stop()
    seconds = time.monotonic() - started
    data = {"job": job, "report": found, "seconds": round(seconds, 1), "peak_memory_bytes": peak_bytes, "exit_code": int(code)}
    if output is Format.JSON:
        print(json.dumps(data, default=str))  # one line, as the lines of the watched job before it
    else:
        print(_closing(seconds, peak_bytes))
    if not started_here:
        console.print("The service ran before the demo and was left running.")
    elif keep or code is Exit.DETACHED:
        console.print(f"The service runs on: {configured.api_url}, MLflow {configured.mlflow_url}. holdfast down stops it.")
    else:
        console.print("The service was stopped; make up brings it back with everything it knows.")
    leave(code)


def _run(file: Path, output: Format) -> tuple[Exit, dict[str, Any] | None, dict[str, Any]]:
    """Submit, watch, report."""
    from api.client import ApiError
    from api.commands import job_file
    from api.commands.console import client
    from api.commands.report import report_text
    from api.commands.watch import follow

    payload = job_file.with_paths(job_file.load(file), ROOT)
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


def _closing(seconds: float, peak_bytes: int) -> str:
    return f"\nEnd to end {seconds:.0f} s ({seconds / 60:.1f} minutes); peak memory of all processes {peak_bytes / 2**30:.1f} GiB."
