"""The Ray cluster of an installation: its environment, its head, and how a process connects to it.

The head is started as processes of their own, which outlive the command that started them; everything started carries
HOLDFAST_INSTANCE in its environment, so that ``down`` can prove that a process is its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

from cluster.errors import HoldfastError
from cluster.settings import NAMESPACE, Settings

OBJECT_STORE_BYTES = 1 << 30
START_DEADLINE_S = 120
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_DEDUP_LOGS": "0",
}
"""Nothing calls home."""
LIMITS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
}
"""Waits that are finite, and idle threads that do not spin while another role computes."""


class SessionError(HoldfastError):
    """Ray could not be started or reached."""

    reason = "ray_unavailable"


def service_environment(settings: Settings) -> dict[str, str]:
    """What every process of the service has in its environment, over what the caller has."""
    own = {
        f"HOLDFAST_{name.upper()}": str(value)
        for name, value in settings.model_dump(mode="json").items()
        if value is not None
    }
    ray_own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(settings.ray_token_file),
        "RAY_ADDRESS": cluster_address(settings),
        "HOLDFAST_INSTANCE": settings.instance,
        "PYTHONUNBUFFERED": "1",
    }
    return {**QUIET, **LIMITS, **own, **ray_own}


def cluster_address(settings: Settings) -> str:
    return settings.ray_address or f"127.0.0.1:{settings.ray_port}"


def ensure_token(settings: Settings) -> None:
    """Ray's cluster token, readable by its owner alone."""
    if settings.ray_token_file.exists():
        return
    settings.ray_token_file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(settings.ray_token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def use_environment(settings: Settings) -> None:
    """Take the service's environment in this process; must come before ``import ray``."""
    ensure_token(settings)
    os.environ.update(service_environment(settings))


def num_gpus() -> int:
    """NVIDIA devices of this machine, without importing torch."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return 0
    listed = subprocess.run([command, "-L"], capture_output=True, text=True)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def start_head(settings: Settings) -> None:
    """Start the head's processes and return when they answer. Raises ``SessionError`` with the end of Ray's own words."""
    ensure_token(settings)
    gpus = num_gpus()
    cpus = max(settings.logical_cpus, os.cpu_count() or 1)
    command = [
        str(Path(sys.executable).parent / "ray"),
        "start",
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={settings.ray_port}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={settings.ray_dashboard_port}",
        f"--ray-client-server-port={settings.ray_client_port}",
        f"--num-cpus={cpus}",
        f"--num-gpus={gpus}",
        f"--temp-dir={settings.ray_temp_dir}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--include-dashboard=true",
        "--disable-usage-stats",
    ]
    environment = {**os.environ, **service_environment(settings)}
    environment.pop("RAY_ADDRESS")
    settings.logs.mkdir(parents=True, exist_ok=True)
    with open(settings.logs / "ray-start.log", "w") as log:
        try:
            code = subprocess.run(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=START_DEADLINE_S
            ).returncode
        except subprocess.TimeoutExpired:
            code = 124
    if code != 0:
        said = (settings.logs / "ray-start.log").read_text()[-2000:]
        raise SessionError(f"Ray did not start (exit code {code}); it said:\n{said}")


def connect(settings: Settings) -> None:
    """Connect this process to the cluster."""
    use_environment(settings)
    import ray

    if not ray.is_initialized():
        ray.init(address=cluster_address(settings), namespace=NAMESPACE, log_to_driver=False, logging_level="warning")
