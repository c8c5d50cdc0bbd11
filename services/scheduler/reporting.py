"""Writes report.json, the heat map's numbers and the link by job name at the end of an attempt."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from services.evaluation.report import build_report, mlflow_section
from services.tracking.links import run_links
from services.tracking.log import read_metrics

RESPONSES_FILE, DISTANCES_FILE = "responses.json", "domain_distances.json"
logger = logging.getLogger("holdfast.reporting")


def write_report(source: dict[str, Any], run_dir: Path, runs: Path, *, mlflow_url: str) -> dict[str, Any]:
    """``runs/<job id>/report.json``, and ``runs/<job name>`` as a link to the newest job of that name."""
    links = run_links(run_dir, mlflow_url)
    report = build_report(
        source["job"],
        source["evaluations"],
        source["checkpoints"],
        read_metrics(run_dir),
        mlflow=links,
        events=source["events"],
        responses=read_responses(run_dir),
        domain_distances=read_json(run_dir / DISTANCES_FILE),
    )
    write_json(run_dir / "report.json", report)
    link_by_name(run_dir, runs / source["job"]["name"])
    return report


def read_responses(run_dir: Path) -> list[dict[str, Any]]:
    """What the stages measured of the policy's answers, stage by stage; none where nothing was measured."""
    files = sorted(run_dir.glob(f"stages/*/{RESPONSES_FILE}"), key=lambda path: int(path.parent.name.partition("-")[0]))
    return [entry for path in files for entry in (read_json(path) or {}).get("entries", [])]


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file; one that is damaged costs its section, not the report, and is said."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        logger.error("%s cannot be read and is left out of the report: %s", path, error)
        return None


def add_links(run_dir: Path, mlflow_url: str) -> None:
    """MLflow's runs into a report that was written before all of them existed."""
    path = run_dir / "report.json"
    if not path.exists():
        return
    report = json.loads(path.read_text())
    links = run_links(run_dir, mlflow_url)
    report["mlflow"] = mlflow_section(links)
    for stage in report["stages"]:
        stage["mlflow"] = links.get(stage["name"])
    write_json(path, report)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def link_by_name(run_dir: Path, link: Path) -> None:
    """Point ``link`` at ``run_dir``; a real folder of that name is left alone."""
    if link.exists() and not link.is_symlink():
        return
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run_dir.name)
    os.replace(temporary, link)
