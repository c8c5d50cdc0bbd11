"""How to start an MLflow server of our own: SQLite, one worker, loopback, nothing that executes what it is sent."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def server_command(home: Path, port: int, host: str = "127.0.0.1") -> list[str]:
    folder = (home / "mlflow").absolute()
    return [
        str(Path(sys.executable).parent / "mlflow"),
        "server",
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        str(folder / "artifacts"),
        "--host",
        host,
        "--port",
        str(port),
        "--workers",
        "1",
        "--allowed-hosts",
        f"localhost:{port},127.0.0.1:{port}",
    ]


def server_environment(home: Path) -> dict[str, str]:
    """Over the caller's own. Creates the folders."""
    (home / "mlflow" / "artifacts").mkdir(parents=True, exist_ok=True)
    return {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
    }


def is_healthy(url: str, timeout_s: float = 1.0) -> bool:
    """Whether the server answers. It is on this host or near it: proxies of the environment are not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url.rstrip('/')}/health", timeout=timeout_s) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def wait_until_healthy(url: str, deadline_s: float = 60.0) -> bool:
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if is_healthy(url):
            return True
        time.sleep(0.25)
    return False
