"""Where a job's runs are in the MLflow pages. No mlflow here: ids are read from the sender's cursor file."""

from __future__ import annotations

import json
from pathlib import Path

CURSOR = "mlflow.json"


def run_url(mlflow_url: str, experiment_id: str, run_id: str) -> str:
    return f"{mlflow_url.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def run_links(run_dir: Path, mlflow_url: str) -> dict[str | None, str]:
    """The job's run under None, and each stage's under its name; empty until MLflow has them."""
    path = run_dir / CURSOR
    if not path.exists():
        return {}
    cursor = json.loads(path.read_text())
    if cursor.get("parent") is None:
        return {}
    runs = {None: cursor["parent"], **cursor["stages"]}
    return {stage: run_url(mlflow_url, cursor["experiment"], run_id) for stage, run_id in runs.items()}


def study_folder(home: Path, study_id: str) -> Path:
    """Where the sender keeps what it needs of a study: its cursor and the last report."""
    return home / "studies" / study_id


def study_link(home: Path, study_id: str, mlflow_url: str) -> str | None:
    """The study's run; None until MLflow has it."""
    path = study_folder(home, study_id) / CURSOR
    if not path.exists():
        return None
    cursor = json.loads(path.read_text())
    return run_url(mlflow_url, cursor["experiment"], cursor["study"]) if cursor.get("study") else None
