"""Records of finished members: what a study needs to be evaluated, or to go on, on another machine.

Invariant: a record is a function of the member, its job's row and its ``report.json``; writing it twice gives the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from services.jobs.records import MemberRecord
from services.jobs.states import TERMINAL

RECORD_FORMAT = 1
DIGITS = 6
"""Significant digits of a figure in a record: far below what one run can resolve."""
LEFT_OUT = ("comparisons",)
"""Sections of a report that are computed from the others, and are large."""
FIELDS = ("format", "study", "arm", "order", "seed", "digest", "status")


class RecordError(ValueError):
    """A file that is no record of this format; says which and why."""


def member_record(study: str, member: MemberRecord, *, run_dir: Path, machine: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a member whose job has ended; None for the others."""
    if member.status not in TERMINAL or member.job_id is None:
        return None
    return {
        "format": RECORD_FORMAT,
        "study": study,
        "arm": member.arm,
        "order": member.order,
        "seed": member.seed,
        "digest": member.digest,
        "model_sha256": member.model_sha256,
        "status": member.status,
        "reason": member.reason,
        "message": member.message,
        "job_id": member.job_id,
        "started_at": member.started_at,
        "finished_at": member.finished_at,
        "seconds": seconds_between(member.started_at, member.finished_at),
        "machine": dict(machine),
        "software": _software(run_dir),
        "report": _report(run_dir / "report.json"),
    }


def study_records(study: str, members: Iterable[MemberRecord], kept: Mapping[int, Any], *, runs: Path, machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of all members that have ended, in the study's order; those of other machines as they came."""
    found = []
    for member in members:
        record = kept.get(member.position) or member_record(study, member, run_dir=runs / str(member.job_id), machine=machine)
        if record is not None:
            found.append(record)
    return found


def this_machine(gpus: float) -> dict[str, Any]:
    """``gpus`` as the cluster reported them."""
    return {"cpus": os.cpu_count() or 1, "platform": platform.platform(), "gpus": int(gpus)}


def seconds_between(started: str | None, finished: str | None) -> float | None:
    """Wall clock of two RFC 3339 times."""
    if started is None or finished is None:
        return None
    return round((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds(), 3)


def _report(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return rounded({key: value for key, value in content.items() if key not in LEFT_OUT})


def _software(run_dir: Path) -> dict[str, str] | None:
    """Versions that the first stage ran with; None where no stage has ended."""
    for path in sorted(run_dir.glob("stages/0-*/reproducibility.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return {"python": content["python"], **content["packages"]}
    return None


def rounded(value: Any) -> Any:
    """Every float with ``DIGITS`` significant digits; what is not finite becomes None."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


# -- as files --------------------------------------------------------------------------------------------------------


def record_text(record: Mapping[str, Any]) -> str:
    """JSON with one line per key (two levels in the report), sorted, so that a difference between two records can be read."""
    lines = [f"{_compact(key)}:{_section(value) if key == 'report' and value else _compact(value)}" for key, value in sorted(record.items())]
    return "{" + ",\n".join(lines) + "}\n"


def _section(report: Mapping[str, Any]) -> str:
    return "{\n" + ",\n".join(f"{_compact(key)}:{_compact(value)}" for key, value in sorted(report.items())) + "}"


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False, allow_nan=False)


def record_path(record: Mapping[str, Any], folder: Path) -> Path:
    """``<arm>/<order>-<seed>.json``. Names are checked: they come from a file or a service."""
    parts = (str(record["arm"]), f"{record['order']}-{record['seed']}.json")
    if any("/" in part or part.startswith(".") for part in parts):
        raise RecordError(f"a record of arm {record['arm']!r} and order {record['order']!r} has no file name")
    return folder.joinpath(*parts)


def write_records(records: Iterable[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Write what is new or has changed; returns those paths."""
    written = []
    for record in records:
        path, text = record_path(record, folder), record_text(record)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
        written.append(path)
    return written


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Every record below a folder, by path. Raises ``RecordError`` for a file that is none; a folder that is not there has none."""
    return [_read_record(path) for path in sorted(folder.glob("*/*.json"))]


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} is not JSON: {error}") from None
    reason = record_problem(record)
    if reason is not None:
        raise RecordError(f"{path} is not a study record: {reason}")
    return record


def record_problem(record: Any) -> str | None:
    """What keeps a value from being a record, or None."""
    if not isinstance(record, dict):
        return "it is not an object"
    missing = [name for name in FIELDS if name not in record]
    if missing:
        return f"it has no {', '.join(missing)}"
    if record["format"] != RECORD_FORMAT:
        return f"its format is {record['format']!r}, this version reads {RECORD_FORMAT}"
    if record["status"] not in TERMINAL:
        return f"its status is {record['status']!r}; allowed are {', '.join(sorted(TERMINAL))}"
    if record["status"] == "succeeded" and not isinstance(record.get("report"), dict):
        return "it succeeded and has no report"
    return None
