"""A real start and stop: Ray, Serve, MLflow in a home of its own, and nothing left behind."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from api import processes
from api.launcher import Launcher
from cluster import session
from cluster.settings import Settings

HOLDFAST = Path(sys.executable).parent / "holdfast"
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@dataclass
class Installation:
    settings: Settings

    def run(self, *arguments: str) -> dict:
        environment = {**os.environ, **{name: value for name, value in session.service_environment(self.settings).items() if name.startswith("HOLDFAST_")}}
        environment.pop(session.INSTANCE_VARIABLE)
        result = subprocess.run([HOLDFAST, *arguments, "-o", "json"], env=environment, capture_output=True, text=True, timeout=240)
        assert result.returncode == 0, result.stdout + result.stderr
        return json.loads(result.stdout)

    def status_of(self, path: str, key: str | None = None) -> int:
        request = urllib.request.Request(self.settings.api_url + path, headers={} if key is None else {"Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code


@pytest.fixture
def installation(settings) -> Iterator[Installation]:
    created = Installation(settings)
    yield created
    Launcher(settings).down()


def open_to_others(settings: Settings) -> list[str]:
    """Addresses beyond loopback on which a process of the service listens."""
    found = []
    for process in processes.own_processes(settings):
        for connection in process.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in LOOPBACK:
                found.append(f"{process.name()} {connection.laddr}")
    return found


@pytest.mark.timeout(400)
def test_up_and_down(installation):
    settings = installation.settings
    first = installation.run("up")
    assert first["changed"] is True
    key = settings.api_key_file.read_text().strip()
    assert first["api_key"] == key
    assert settings.api_key_file.stat().st_mode & 0o777 == 0o600

    assert installation.status_of("/v1/jobs") == 401
    assert installation.status_of("/v1/jobs", key + "0") == 401
    assert installation.status_of("/v1/jobs", key) == 200
    assert installation.status_of("/healthz") == 200
    assert session.jobs_api_status(settings, with_token=False) == 401
    assert session.jobs_api_status(settings) == 200
    assert open_to_others(settings) == []
    assert settings.ray_temp_dir.stat().st_mode & 0o777 == 0o700
    assert processes.memory_bytes(settings) < 4 * 2**30

    running = {process.pid for process in processes.own_processes(settings)}
    second = installation.run("up")
    assert second["changed"] is False and "api_key" not in second
    assert running <= {process.pid for process in processes.own_processes(settings)}

    (mlflow,) = [item for item in processes.read_state(settings) if item.role == "mlflow"]
    processes.end([*psutil.Process(mlflow.pid).children(recursive=True), psutil.Process(mlflow.pid)], grace_s=5)
    repaired = installation.run("up")
    assert repaired["changed"] is True
    (again,) = [item for item in processes.read_state(settings) if item.role == "mlflow"]
    assert again.pid != mlflow.pid
    assert {item.pid for item in processes.read_state(settings) if item.role != "mlflow"} <= running
    status = installation.run("status")
    assert status["parts"] == {"ray": True, "mlflow": True, "api": True, "scheduler": True}

    assert installation.run("down")["changed"] is True
    assert processes.own_processes(settings) == []
    assert not settings.ray_temp_dir.exists() and not settings.transfer.exists()
    assert not processes.state_file(settings).exists()
    assert settings.api_key_file.read_text().strip() == key
    with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
        installation.status_of("/healthz")
    assert installation.run("down")["changed"] is False
