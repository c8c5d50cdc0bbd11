"""Records that come with a study file: which may stand in for a member, and which cannot be taken at all.

Invariant: a stored record is one that the study's report can be made of; it is never changed later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from api.submission import Submission
from cluster.spec.study import Member, StudySpec
from services.jobs.input_hashes import input_hashes, same_inputs
from services.jobs.study_records import record_problem


def record_faults(records: Sequence[Any]) -> list[dict[str, str]]:
    """A fault for each that is no record."""
    return [_fault(index, f"this is no study record: {reason}") for index, record in enumerate(records) if (reason := record_problem(record)) is not None]


def may_stand_in(record: Mapping[str, Any], member: Member | None, study: str, checked: Submission | None) -> bool:
    """Whether a record is of a run of this member: of its job file, and of the same base model, data, given checkpoints and teachers
    where both sides know them. ``checked``: the member as it would run here, None where it could not."""
    if member is None or (record["study"], record["arm"], record["order"], record["seed"]) != (study, member.arm, member.order, member.seed):
        return False
    if checked is None:
        return True
    here, there = checked.resolved.get("model_sha256"), record.get("model_sha256")
    same_model = here is None or there is None or here == there
    return same_model and same_inputs(input_hashes(checked.spec, checked.resolved), record.get("inputs"))


def report_faults(study: StudySpec, records: Mapping[int, Mapping[str, Any]]) -> list[dict[str, str]]:
    """A fault for each record (by its place in the body) that no report can be made of."""
    if not records or _problem(study, list(records.values())) is None:
        return []
    found = [_fault(index, f"no report can be made of it: {reason}") for index, record in records.items() if (reason := _problem(study, [record])) is not None]
    return found or [{"pointer": "/records", "detail": f"no report can be made of all of them: {_problem(study, list(records.values()))}", "code": "invalid_record"}]


def _problem(study: StudySpec, records: list[Mapping[str, Any]]) -> str | None:
    from services.evaluation.studies import build_study_report  # scipy: a second, and most studies come without records

    try:
        json.dumps(build_study_report(study, records), allow_nan=False)
    except Exception as error:  # a record may hold anything where a figure looks for numbers
        return f"{type(error).__name__}: {error}"[:200]
    return None


def _fault(index: int, detail: str) -> dict[str, str]:
    return {"pointer": f"/records/{index}", "detail": detail, "code": "invalid_record"}
