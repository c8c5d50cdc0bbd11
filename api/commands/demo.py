"""``holdfast demo``: a continual training job through the whole service, measured."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from api.commands.console import Format, Output, guard, leave, settings

ROOT = Path(__file__).resolve().parents[2]
DEMO_FILE = ROOT / "deploy" / "jobs" / "demo.yaml"
SAMPLE_EVERY_S = 2.0


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
    from api.commands import job_file
    from api.commands.whole_run import run_job, running_service, tell_service

    started = time.monotonic()
    with guard(output):
        configured = settings()
        peak = MemoryPeak(configured)
        peak.start()
        try:
            with running_service(configured, keep=keep) as visit:
                visit.code, found, job = run_job(job_file.with_paths(job_file.load(file), ROOT), output)
        finally:
            peak_bytes = peak.stop()
    seconds = time.monotonic() - started
    data = {"job": job, "report": found, "seconds": round(seconds, 1), "peak_memory_bytes": peak_bytes, "exit_code": int(visit.code)}
    if output is Format.JSON:
        print(json.dumps(data, default=str))  # one line, as the lines of the watched job before it
    else:
        print(_closing(seconds, peak_bytes))
    tell_service(visit, configured, keep=keep)
    leave(visit.code)


def _closing(seconds: float, peak_bytes: int) -> str:
    return f"\nEnd to end {seconds:.0f} s ({seconds / 60:.1f} minutes); peak memory of all processes {peak_bytes / 2**30:.1f} GiB."
