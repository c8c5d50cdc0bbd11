"""Ray: the environment of everything that the service starts, the head process, and the connection to it.

Invariant: Ray is never reachable without the token in ``settings.ray_token_file``. The mode is in the environment before
anything imports ray, because setting it afterwards leaves a server in token mode and a client that sends none.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cluster.errors import HoldfastError
from cluster.settings import NAMESPACE, Settings

INSTANCE_VARIABLE = "HOLDFAST_INSTANCE"
"""Carried by every process of an installation; what lacks it is never ended."""
OBJECT_STORE_BYTES = 1_000_000_000
START_DEADLINE_S = 90.0
LOOPBACK = "127.0.0.1"

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
TIMING = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "120",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # an actor that watches for nodes about to be taken away, which the train function would not be told of; it takes seconds to start
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
THREADS = {
    # Roles take turns on the same cores. Idle threads that spin would take them from the role whose turn it is: with one
    # core busy a learner step took 13 times as long.
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}
IDLE = {
    # What an idle cluster does for dashboards that nobody has set up: halves the processor time of an idle service.
    "RAY_enable_metrics_collection": "0",
    "RAY_metrics_report_interval_ms": "60000",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}
LOCAL_ONLY = {
    # With this off Ray takes 127.0.0.1 for the node's address, and all its servers listen on loopback alone; with it on it
    # replaces a loopback address by one that other machines can reach.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_HOST_IP": LOOPBACK,
}


def service_environment(settings: Settings) -> dict[str, str]:
    """Variables for every process of the service, to be laid over the caller's own environment.

    Holds the settings themselves, so that ``Settings()`` in a child equals ``settings``.
    """
    variables = {**QUIET, **TIMING, **THREADS, **IDLE, **_settings_variables(settings), INSTANCE_VARIABLE: settings.instance}
    # setproctitle writes over the environment that /proc shows, and with it over our mark
    variables["SPT_NOENV"] = "1"
    if settings.ray_address is None:
        variables |= LOCAL_ONLY | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(settings.ray_token_file)}
        # what libraries leave in the temporary folder goes with it; kernels they compiled are kept for the next start
        variables |= {"TMPDIR": str(temporary_folder(settings)), "TORCHINDUCTOR_CACHE_DIR": str(settings.home.absolute() / "cache" / "torchinductor")}
    else:
        # somebody else's cluster: their way of authentication, as the caller's environment has it
        variables |= {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN") if name in os.environ}
    return variables


def temporary_folder(settings: Settings) -> Path:
    """TMPDIR of the service's processes on this machine."""
    return settings.ray_temp_dir / "tmp"


def ray_folder(settings: Settings) -> Path:
    """What Ray is given: it opens its folder to every user of the machine, so it gets one inside a folder of ours alone."""
    return settings.ray_temp_dir / "ray"


def _settings_variables(settings: Settings) -> dict[str, str]:
    values = settings.model_copy(update={"home": settings.home.absolute()}).model_dump(mode="json", exclude_none=True)
    return {f"HOLDFAST_{name.upper()}": str(value) for name, value in values.items()}


def ray_address(settings: Settings) -> str:
    return settings.ray_address or f"{LOOPBACK}:{settings.ray_port}"


def connect(settings: Settings) -> None:
    """Connect this process to the service's cluster. Raises ``HoldfastError`` ``ray_unreachable``."""
    if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != service_environment(settings).get("RAY_AUTH_MODE"):
        raise HoldfastError("ray was imported before its authentication was set", reason="ray_unprotected")
    os.environ.update(service_environment(settings))
    import ray

    try:
        ray.init(address=ray_address(settings), namespace=NAMESPACE, log_to_driver=False, logging_level="WARNING")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise HoldfastError(f"no Ray cluster answers at {ray_address(settings)}: {error}", reason="ray_unreachable") from error


def stop_actor(name: str, *, stop_timeout_s: float) -> bool:
    """Call ``stop`` of a named actor of the service and end it for good; False where there is none."""
    import ray

    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return False
    with contextlib.suppress(Exception):  # an actor that cannot stop in order is ended all the same
        ray.get(actor.stop.remote(), timeout=stop_timeout_s)
    ray.kill(actor, no_restart=True)
    return True


def keep_replica_on_loopback() -> None:
    """Call in a Serve replica before it has started: its internal server then listens on loopback alone.

    Serve opens it on every interface, asks for no token and unpickles what it is sent: anybody who reaches the port could run
    code. Ray has no setting for the address. Does nothing in a cluster of several nodes (``LOCAL_ONLY`` not set), where the
    network has to keep strangers away.
    """
    if os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") != "0":
        return
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server  # an AttributeError here is right: another Ray needs another way
    replica.add_port_to_grpc_server = lambda server, address: add_port(server, f"{LOOPBACK}:{address.rsplit(':', 1)[1]}")


# -- the head of a cluster of our own ---------------------------------------------------------------------------------


def write_token(settings: Settings) -> None:
    """Make the secret that every client of this cluster must send, readable by its owner alone."""
    path = settings.ray_token_file
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    path.chmod(0o600)


def head_command(settings: Settings, *, gpus: int) -> list[str]:
    """``ray start --head`` on loopback. CPUs are bookkeeping, so that every role of a job fits on a small machine."""
    options = {
        "--node-ip-address": LOOPBACK,
        "--port": settings.ray_port,
        "--dashboard-host": LOOPBACK,
        "--dashboard-port": settings.ray_dashboard_port,
        "--include-dashboard": "true",
        "--dashboard-agent-listen-port": 0,
        "--min-worker-port": 0,
        "--max-worker-port": 0,
        "--temp-dir": ray_folder(settings),
        "--object-store-memory": OBJECT_STORE_BYTES,
        "--log-style": "record",
        "--log-color": "false",
        "--num-cpus": settings.logical_cpus if gpus == 0 else max(settings.logical_cpus, os.cpu_count() or 1),
    }
    flags = [text for name, value in options.items() for text in (name, str(value))]
    ray = Path(sys.executable).parent / "ray"
    return [str(ray), "start", "--head", "--disable-usage-stats", "--no-monitor", *flags]


def lean_start(parameters: Any, head: bool) -> None:
    """Called by ``ray start`` before it starts anything: leaves out the Ray Client server, which nothing here uses."""
    parameters.ray_client_server_port = None


def start_head(settings: Settings, *, log: Path) -> None:
    """Start the head and wait until the Jobs API answers. Raises ``HoldfastError`` ``ray_start_failed``."""
    write_token(settings)
    environment = {**os.environ, **service_environment(settings), "RAY_START_HOOK": "cluster.session.lean_start"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        try:
            result = subprocess.run(
                head_command(settings, gpus=count_gpus()),
                env=environment,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=START_DEADLINE_S,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise HoldfastError(f"ray start did not end within {START_DEADLINE_S:g} s; see {log}", reason="ray_start_failed") from None
    if result.returncode != 0:
        raise HoldfastError(f"ray start failed: {_last_line(log)} (all of it in {log})", reason="ray_start_failed")
    _wait_for_jobs_api(settings, log)


def _wait_for_jobs_api(settings: Settings, log: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while jobs_api_status(settings) != 200:
        if time.monotonic() > deadline:
            raise HoldfastError(f"Ray started, but its Jobs API does not answer at {jobs_api_url(settings)}; see {log}", reason="ray_start_failed")
        time.sleep(0.2)
    if jobs_api_status(settings, with_token=False) not in (401, 403):
        raise HoldfastError("Ray's Jobs API answers without the token, so anybody on this machine could run code", reason="ray_unprotected")


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def jobs_api_url(settings: Settings) -> str:
    return f"http://{LOOPBACK}:{settings.ray_dashboard_port}"


def jobs_api_status(settings: Settings, *, with_token: bool = True, timeout_s: float = 3.0) -> int | None:
    """The HTTP status of the Jobs API's list, or None where nothing answers."""
    request = urllib.request.Request(f"{jobs_api_url(settings)}/api/jobs/")
    if with_token:
        with contextlib.suppress(OSError):
            request.add_header("Authorization", f"Bearer {settings.ray_token_file.read_text().strip()}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            json.load(answer)
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError):
        return None


def count_gpus() -> int:
    """NVIDIA GPUs of this machine, by the driver's own listing; 0 without a driver."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        result = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
        if result.returncode == 0:
            return sum(line.startswith("GPU ") for line in result.stdout.splitlines())
    return 0
