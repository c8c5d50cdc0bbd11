"""A real service for the end-to-end tests: ``holdfast up`` in a home of its own, on free ports, ended by ``holdfast down``."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_service import Service, free_ports


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    home = Path(tempfile.mkdtemp(prefix="hf-e2e-"))
    names = ("API_PORT", "MLFLOW_PORT", "RAY_PORT", "RAY_DASHBOARD_PORT")
    ports = {f"HOLDFAST_{name}": str(port) for name, port in zip(names, free_ports(len(names)), strict=True)}
    started = Service(home, {**os.environ, **ports, "HOLDFAST_HOME": str(home)})
    try:
        started.up()
        yield started
    finally:
        started.command("down")
        shutil.rmtree(home, ignore_errors=True)
