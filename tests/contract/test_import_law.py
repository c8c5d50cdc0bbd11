"""The import law, the walls around the big libraries, and what may be loaded when."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("cluster", "services", "trainer", "rollout", "api")


def test_import_linter_keeps_its_contracts():
    result = subprocess.run([Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("room", ROOMS)
def test_each_room_is_this_repository(room):
    """A third-party distribution called ``trainer`` exists; ours must be the one that is imported."""
    assert Path(importlib.import_module(room).__file__).resolve().parent == ROOT / room


def _loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in result.stdout.split()}


@pytest.mark.parametrize(
    ("statement", "forbidden"),
    [
        ("import cluster.spec.job", {"torch", "numpy", "ray", "transformers", "vllm", "mlflow"}),
        ("import api.app", {"torch", "ray", "vllm", "mlflow", "transformers"}),
        ("import api.cli", {"torch", "ray", "vllm", "mlflow", "transformers"}),
        ("import trainer.learner", {"ray", "vllm", "mlflow", "pydantic_settings"}),
        ("import services.teacher.scorer", {"ray", "vllm"}),
        ("import trainer.learner, services.teacher.scorer", {"sklearn", "pandas", "pyarrow"}),  # transformers loads them where it finds them
        ("import services.teacher.group", {"torch", "transformers"}),  # the driver of an attempt names it and loads no model
        ("import rollout.verifiers.pool", {"torch", "transformers"}),
    ],
)
def test_what_a_module_loads(statement, forbidden):
    assert _loaded_after(statement) & forbidden == set()


def test_ray_stays_in_its_files():
    """``ray`` only in cluster, services, api/serve.py, and files called actor.py, group.py or pool.py."""
    allowed_names = {"actor.py", "group.py", "pool.py"}
    offenders = []
    for room in ("trainer", "rollout", "api"):
        for path in (ROOT / room).rglob("*.py"):
            lines = [line.strip() for line in path.read_text().splitlines()]
            uses = any(line.startswith(("import ray", "from ray")) for line in lines)
            if uses and path.name not in allowed_names and path != ROOT / "api" / "serve.py":
                offenders.append(str(path.relative_to(ROOT)))
    assert offenders == []


def test_code_is_ascii():
    offenders = [str(p.relative_to(ROOT)) for room in (*ROOMS, "tests") for p in (ROOT / room).rglob("*.py") if not p.read_text().isascii()]
    assert offenders == []


def test_nothing_executes_user_bytes():
    """No pickle and no remote code on any path that a user's file can take."""
    words = ("trust_remote_code=True", "pickle.load", "torch.load(", "weights_only=False", "yaml.load(")
    offenders = [
        f"{path.relative_to(ROOT)}: {word}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for word in words
        if word in path.read_text()
    ]
    assert offenders == []
