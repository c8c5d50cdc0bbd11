"""What the tests of the command line share: settings of a home that nobody else has, and the command line itself."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PORTS = ("API_PORT", "MLFLOW_PORT", "RAY_PORT", "RAY_DASHBOARD_PORT")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings by the environment, as a user gives them."""
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True):
        monkeypatch.setenv(f"HOLDFAST_{name}", str(port))
    yield Settings()


@pytest.fixture
def holdfast(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """Call the command line in this process: ``holdfast("validate", file)``."""
    from api.cli import app

    monkeypatch.chdir(ROOT)

    def call(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call
