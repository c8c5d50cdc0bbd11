"""Reads a job's log files: the drivers' output per attempt, in Ray's folder or kept by ``down``, and ``*.log`` in the run folder.

Invariant: only files under the run folder, Ray's session folder and the folder of logs, named by ids that the store gave
out, are read; never more than ``LARGEST_READ`` bytes of one at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cluster.settings import Settings

LARGEST_READ = 4_000_000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def log_files(settings: Settings, job_id: str, attempt_ids: list[str]) -> list[Path]:
    """Existing log files, the oldest attempt first. Ray keeps one session folder per start of the cluster."""
    files = sorted(settings.run_dir(job_id).glob("*.log"))
    for attempt_id in attempt_ids:
        name = f"job-driver-{attempt_id}.log"
        found = {path.resolve() for below in ("", "ray/") for path in settings.ray_temp_dir.glob(f"{below}session_*/logs/{name}")}
        kept = settings.logs / "attempts" / name  # a stop of the service takes Ray's folder away and keeps this
        files += sorted(found) or ([kept] if kept.exists() else [])
    return files


class LogReader:
    """Reads a growing list of growing files; ``tail`` once, then ``more``."""

    def __init__(self, files: Callable[[], list[Path]]):
        self._files = files
        self._offsets: dict[Path, int] = {}

    def tail(self, num_lines: int) -> str:
        """The last lines over all files; later reads go on from here."""
        lines: list[str] = []
        for path in reversed(self._files()):
            size = _size(path)
            self._offsets[path] = size
            if len(lines) < num_lines:
                start = max(0, size - LARGEST_READ)
                lines = _read(path, start, size).splitlines()[int(start > 0):] + lines
        return "".join(line + "\n" for line in lines[-num_lines:]) if num_lines else ""

    def more(self) -> str:
        """What was written since; empty where nothing was."""
        pieces = []
        for path in self._files():
            start, size = self._offsets.get(path, 0), _size(path)
            stop = min(size, start + LARGEST_READ)
            if stop > start:
                pieces.append(_read(path, start, stop))
                self._offsets[path] = stop
        return "".join(pieces)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path, start: int, stop: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(start)
            text = file.read(stop - start).decode("utf-8", "replace")
    except OSError:
        return ""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text.replace("\r\n", "\n"))
