"""A real MLflow server on a free port, started and stopped by the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.tracking.server import is_healthy, server_command, server_environment, wait_until_healthy


class MlflowServer:
    """``home`` keeps its data, so that it can be stopped and started again."""

    def __init__(self, home: Path):
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        environment = {**os.environ, **server_environment(self.home)}
        with open(self.home / "server.log", "a") as log:
            self._process = subprocess.Popen(
                server_command(self.home, self.port), env=environment, stdout=log, stderr=log, start_new_session=True, cwd=self.home
            )
        assert wait_until_healthy(self.url, 90.0), (self.home / "server.log").read_text()[-3000:]

    def stop(self) -> None:
        if self._process is None:
            return
        group = self._process.pid
        os.killpg(group, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait(10)
        self._process = None
        deadline = time.monotonic() + 10
        while is_healthy(self.url) and time.monotonic() < deadline:
            time.sleep(0.1)


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def dead_url() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
