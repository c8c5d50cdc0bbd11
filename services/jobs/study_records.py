"""Records of finished members: what a study needs to be evaluated, or to go on, on another machine.

Invariant: a record is a function of the member, its job's row and its ``report.json``; writing it twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import zlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from services.jobs.input_hashes import same_inputs
from services.jobs.records import MemberRecord
from services.jobs.states import TERMINAL

RECORD_FORMAT = 1
DIGITS = 6
"""Significant digits of a figure in a record: far below what one run can resolve."""
LEFT_OUT = ("comparisons", "models", "mlflow")
"""Sections of a report that are computed from the others and are large, or that mean something on one machine alone."""
LEFT_OUT_OF_STAGES = ("model", "mlflow")
DRIFT_DIGITS = 4
DRIFT_FIGURES = (
    "relative_l2",
    "nss_median",
    "nss_weighted",
    "max_angle_deg_median",
    "stable_rank_median",
    "bf16_unchanged_share",
    "principal_overlap",
    "principal_update_share",
    "update_in_principal_share",
)
"""Of the weights, over all tensors; what the report of a job has besides, by kind of matrix, would be half of every record."""
FIELDS: dict[str, type] = {"format": int, "study": str, "arm": str, "order": str, "seed": int, "digest": str, "status": str}
"""What every record has, and of which type."""
OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(("model_sha256", "reason", "message", "job_id", "started_at", "finished_at"), str),
    "seconds": int | float,
    **dict.fromkeys(("inputs", "machine", "software", "report"), dict),
}
"""What may be left out or null; records of before a field was kept have none."""
METHOD_REASONS = frozenset({"non_finite_loss"})
"""Reasons of a failed run that are its method's."""
REPLACED = "replaced"
"""Subfolder of an arm's for files that made way for another run's; it is not read."""


class RecordError(ValueError):
    """A file that is no record of this format; says which and why."""


def member_record(study: str, member: MemberRecord, *, run_dir: Path, machine: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a member whose job has ended; None for the others, and for one that succeeded and has no report any more."""
    if member.status not in TERMINAL or member.job_id is None:
        return None
    report = _report(run_dir / "report.json")
    if member.status == "succeeded" and report is None:
        return None
    return {
        "format": RECORD_FORMAT,
        "study": study,
        "arm": member.arm,
        "order": member.order,
        "seed": member.seed,
        "digest": member.digest,
        "model_sha256": member.model_sha256,
        "inputs": member.inputs,
        "status": member.status,
        "reason": member.reason,
        "message": member.message,
        "job_id": member.job_id,
        "started_at": member.started_at,
        "finished_at": member.finished_at,
        "seconds": seconds_between(member.started_at, member.finished_at),
        "machine": dict(machine),
        "software": _software(run_dir),
        "report": report,
    }


def is_result(record: Mapping[str, Any]) -> bool:
    """Whether nothing is left to run: it succeeded, or failed by its method."""
    return record["status"] == "succeeded" or failed_by_its_method(record)


def failed_by_its_method(record: Mapping[str, Any]) -> bool:
    """Whether a run ended because of what was trained, not because of a machine: that is a result."""
    return record["status"] == "failed" and record.get("reason") in METHOD_REASONS


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
    return {"cpus": os.cpu_count() or 1, "platform": f"{platform.system()} {platform.machine()}", "gpus": int(gpus)}


def seconds_between(started: str | None, finished: str | None) -> float | None:
    """Wall clock of two RFC 3339 times."""
    if started is None or finished is None:
        return None
    return round((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds(), 3)


def _report(path: Path) -> dict[str, Any] | None:
    """A finished job's report; None where there is none, or a damaged one. A file that cannot be read now raises."""
    try:
        status = path.stat()
        return json.loads(zlib.decompress(_report_text(path, status.st_size, status.st_mtime_ns, status.st_ino)))
    except (FileNotFoundError, ValueError):
        return None


@lru_cache(maxsize=4096)
def _report_text(path: Path, size: int, modified_ns: int, inode: int) -> bytes:
    """What a record keeps of a report, as compressed JSON; remembered for as long as the file looks the same, because the records of
    a study are asked for whenever a member ends."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in content.items() if key not in LEFT_OUT}
    if "stages" in kept:
        kept["stages"] = [{key: value for key, value in stage.items() if key not in LEFT_OUT_OF_STAGES} for stage in kept["stages"]]
    if kept.get("drift"):
        kept["drift"] = _drift(kept["drift"])
    return zlib.compress(_compact(rounded(kept)).encode(), 1)


def _drift(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section with the figures that are kept of weights, and fewer digits."""
    parameters = [
        {key: {name: value[name] for name in DRIFT_FIGURES if name in value} if key in ("base", "start") and value else value for key, value in entry.items()}
        for entry in section.get("parameters") or []
    ]
    return rounded({**section, "parameters": parameters}, DRIFT_DIGITS)


def _software(run_dir: Path) -> dict[str, str] | None:
    """Versions that the first stage ran with; None where no stage has ended."""
    for path in sorted(run_dir.glob("stages/0-*/reproducibility.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return {"python": content["python"], **content["packages"]}
    return None


def rounded(value: Any, digits: int = DIGITS) -> Any:
    """Every float with so many significant digits; what is not finite becomes None."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    return [rounded(item, digits) for item in value] if isinstance(value, list | tuple) else value


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


def write_records(records: Iterable[Mapping[str, Any]], folder: Path, *, tell: Callable[[Path], None] | None = None) -> list[Path]:
    """Write what is new or has changed; returns those paths. A file of a run with a result is never lost: it stays where the new
    record has no result of the same work, and is moved aside where that is another run's (``tell`` hears its new path)."""
    written = []
    for record in records:
        path, text = record_path(record, folder), record_text(record)
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if record["status"] == "succeeded" and record.get("report") is None:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        known = _result(path)
        if known is not None and known.get("report") and is_result(record) and record.get("report") is None:
            continue  # the run's folder was cleaned up; what it showed is here alone
        if known is not None and any(record.get(name) != known.get(name) for name in ("job_id", "digest")):
            if not is_result(record) and _same_work(record, known):
                continue
            aside = _move_aside(path)
            if tell is not None:
                tell(aside)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
        written.append(path)
    return written


def _result(path: Path) -> dict[str, Any] | None:
    """The record at a path where it is a result."""
    try:
        record = _read_record(path) if path.is_file() else None
    except RecordError:
        return None
    return record if record is not None and is_result(record) else None


def _same_work(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    models = {record["model_sha256"] for record in (one, other) if record.get("model_sha256")}
    return one["digest"] == other["digest"] and len(models) < 2 and same_inputs(one.get("inputs"), other.get("inputs"))


def _move_aside(path: Path) -> Path:
    aside = path.parent / REPLACED / f"{path.stem}.{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.json"
    aside.parent.mkdir(exist_ok=True)
    os.replace(path, aside)
    return aside


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
    wrong = [name for name, kind in FIELDS.items() if not _is(record[name], kind)]
    wrong += [name for name, kind in OPTIONAL.items() if record.get(name) is not None and not _is(record[name], kind)]
    if wrong:
        return f"its {wrong[0]} is {json.dumps(record[wrong[0]])[:60]}, which is of the wrong type"
    if not all(isinstance(value, str) for value in (record.get("inputs") or {}).values()):
        return "its inputs are not all hashes"
    if record["format"] != RECORD_FORMAT:
        return f"its format is {record['format']!r}, this version reads {RECORD_FORMAT}"
    if record["status"] not in TERMINAL:
        return f"its status is {record['status']!r}; allowed are {', '.join(sorted(TERMINAL))}"
    if record["status"] == "succeeded" and not isinstance(record.get("report"), dict):
        return "it succeeded and has no report"
    return None


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
