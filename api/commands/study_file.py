"""Reading a study file and its records from disk, and checking and reporting them with no service at hand.

Invariant: a study file's paths stay as they are written, because a member's digest is that of the file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from api.commands import job_file
from api.commands.console import Refused


def read(path: Path, changes: Sequence[str] = ()) -> Any:
    """The content of a study file. Raises ``Refused``."""
    payload = job_file.read(path, changes)
    if not isinstance(payload, dict):
        raise Refused(f"{path} is not a study file: it holds no object")
    return json.loads(json.dumps(payload, default=str))


def records(folder: Path | None) -> list[dict[str, Any]]:
    """The records below a folder; none where the folder is not there yet. Raises ``Refused`` for a file that is none."""
    from services.jobs.study_records import RecordError, read_records

    try:
        return [] if folder is None else read_records(folder)
    except RecordError as error:
        raise Refused(str(error)) from None


def check(payload: Any, known: Sequence[Any], folders: Sequence[Path], settings: Any) -> Any:
    """The plan of a study file (``api.schemas.StudyPlan``), made here. Raises ``SpecError`` with every fault."""
    from api.cluster_view import cluster_resources
    from api.study_submission import check_study
    from api.study_views import study_plan

    cluster = cluster_resources(settings)
    return study_plan(check_study(payload, records=known, folders=[folder.absolute() for folder in folders], cluster=cluster), cluster)


def report(path: Path, known: Sequence[Any], changes: Sequence[str] = ()) -> dict[str, Any]:
    """The report of a study file and its records. Raises ``Refused`` where the file has faults of its own."""
    from pydantic import ValidationError

    from cluster.spec.study import StudySpec
    from services.evaluation.studies import build_study_report
    from services.jobs.faults import model_faults

    payload = read(path, changes)
    try:
        study = StudySpec.model_validate(payload)
    except ValidationError as error:
        raise Refused(f"{path} is not a study file", [dict(fault) for fault in model_faults(error, StudySpec, payload)]) from None
    return build_study_report(study, known)


def report_text(found: dict[str, Any]) -> Any:
    from rich.text import Text

    from services.evaluation.studies import render_text

    return Text(render_text(found))


def write_page(found: dict[str, Any], path: Path) -> None:
    """One HTML page with tables and plots."""
    from services.evaluation.studies import write_html

    path.parent.mkdir(parents=True, exist_ok=True)
    write_html(found, path)


def write_markdown(found: dict[str, Any], path: Path) -> None:
    """The tables, for a repository."""
    from services.evaluation.studies import render_markdown

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_markdown(found), encoding="utf-8")
