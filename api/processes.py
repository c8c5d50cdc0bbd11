"""Which processes belong to this installation, and how they are ended.

Invariant: only a process that carries this installation's mark in its environment is ever ended, and one that was recorded
only if its start time is still the recorded one: a number that another program got meanwhile is left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from cluster.session import INSTANCE_VARIABLE
from cluster.settings import Settings

SAME_START_S = 2.0
"""Start times are computed from the boot time, which moves by a second when the clock is set right."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One started process, as service.json keeps it."""

    role: str
    pid: int
    create_time: float

    @classmethod
    def of(cls, role: str, process: psutil.Process) -> Recorded:
        return cls(role, process.pid, process.create_time())


def state_file(settings: Settings) -> Path:
    return settings.home.absolute() / "service.json"


def read_state(settings: Settings) -> list[Recorded]:
    """What the last ``up`` started; empty where there is no file or it is not one of ours."""
    try:
        content = json.loads(state_file(settings).read_text(encoding="utf-8"))
        return [Recorded(str(item["role"]), int(item["pid"]), float(item["create_time"])) for item in content["processes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_state(settings: Settings, recorded: Iterable[Recorded]) -> None:
    path = state_file(settings)
    temporary = path.with_suffix(".tmp")
    content = {"instance": settings.instance, "processes": [asdict(item) for item in recorded]}
    temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def alive(settings: Settings, recorded: Recorded) -> psutil.Process | None:
    """The process that was recorded, or None: gone, another one under its number, or not ours."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(recorded.pid)
        same = abs(process.create_time() - recorded.create_time) < SAME_START_S
        if same and is_ours(settings, process) and process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


def is_ours(settings: Settings, process: psutil.Process) -> bool:
    """Whether the process carries this installation's mark. One that cannot be read counts as somebody else's."""
    try:
        return process.environ().get(INSTANCE_VARIABLE) == settings.instance
    except (psutil.Error, OSError):
        return False


def own_processes(settings: Settings) -> list[psutil.Process]:
    """Every living process of this installation, the caller and its ancestors excepted."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid not in spared and process.status() != psutil.STATUS_ZOMBIE and is_ours(settings, process):
                found.append(process)
    return found


def roots(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Those whose parent is not among them: what the service started, without what that started in turn."""
    numbers = {process.pid for process in processes}
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in numbers:
                found.append(process)
    return found


def role_of(process: psutil.Process) -> str:
    """What a root is, for people: from its command."""
    command = ""
    with contextlib.suppress(psutil.Error):
        command = " ".join(process.cmdline())
    for word, role in (("gcs_server", "ray-gcs"), ("raylet", "ray-raylet"), ("dashboard.py", "ray-dashboard"), ("log_monitor", "ray-log-monitor")):
        if word in command:
            return role
    return "mlflow" if "mlflow" in command else "other"


def end(processes: Sequence[psutil.Process], *, grace_s: float) -> list[psutil.Process]:
    """SIGTERM, wait, SIGKILL, wait. Returns those that are left. psutil itself checks the start time before it signals."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, left = psutil.wait_procs(processes, timeout=grace_s)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return psutil.wait_procs(left, timeout=5.0)[1]


def sweep(settings: Settings, *, grace_s: float = 6.0) -> int:
    """End every process of this installation; returns how many there were. Again, for what was being born meanwhile."""
    ended = 0
    for _ in range(3):
        found = own_processes(settings)
        if not found:
            break
        ended += len(found)
        end(found, grace_s=grace_s)
    return ended


def memory_bytes(settings: Settings) -> int:
    """Proportional set size of all processes of this installation and of the caller: shared pages are counted once."""
    total = 0
    for process in [*own_processes(settings), psutil.Process()]:
        total += _pss_bytes(process.pid)
    return total


def _pss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)
    except (OSError, ValueError):
        return 0
