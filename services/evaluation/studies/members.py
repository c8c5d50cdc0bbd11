"""Records of finished members against the study that they say they belong to.

Invariant: a record counts once, and only where the digest of its job file is that of the study's own member; every record that
does not count is named in a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.spec.study import Member, StudySpec, expand
from services.evaluation.plots.runs import Run, run_of_report
from services.jobs.study_records import is_result

RECORD_FORMAT = 1
Key = tuple[str, str, int]
"""Arm, order, seed."""
Record = Mapping[str, Any]


def key_of(item: Record | Member) -> Key:
    if isinstance(item, Member):
        return item.arm, item.order, item.seed
    return item["arm"], item["order"], item["seed"]


def words_of(key: Key) -> str:
    return f"{key[0]}/{key[1]}-{key[2]}"


def matched_records(study: StudySpec, records: Sequence[Record]) -> tuple[dict[Key, Member], dict[Key, Record], list[str]]:
    """All members, the records that count, and what has to be said about the others. Of several records of one member the
    last that is a result counts (succeeded, or failed by its method), or else the last."""
    members = {key_of(member): member for member in expand(study)}
    found: dict[Key, Record] = {}
    notes = []
    for record in records:
        key = key_of(record)
        fault = _fault(study, members.get(key), record)
        if fault:
            notes.append(f"the record of {words_of(key)} is left out: {fault}")
            continue
        if key in found:
            notes.append(f"{words_of(key)} has more than one record; the last that is a result counts, or else the last")
            if is_result(found[key]) and not is_result(record):
                continue
        found[key] = record
    notes += _other_models(found)
    return members, {key: found[key] for key in members if key in found}, notes + _mixed_problems(found)


def _fault(study: StudySpec, member: Member | None, record: Record) -> str | None:
    if record.get("format") != RECORD_FORMAT:
        return f"its format is {record.get('format')!r}, this version reads {RECORD_FORMAT}"
    if record.get("study") != study.name:
        return f"it belongs to the study {record.get('study')!r}"
    if member is None:
        return "the study has no such member"
    if record.get("digest") != member.digest:
        return f"its job file has the digest {str(record.get('digest'))[:12]}, the member's is {member.digest[:12]}; run it again or keep the study file that it came from"
    return None


def _other_models(found: dict[Key, Record]) -> list[str]:
    """Take out records of another base model than the newest record's: a base that was built again is another study."""
    known = {key: record["model_sha256"] for key, record in found.items() if record.get("model_sha256")}
    newest = max(known, key=lambda key: str(found[key].get("finished_at") or ""), default=None)
    others = [key for key, digest in known.items() if digest != known[newest]]
    for key in others:
        del found[key]
    return [f"the record of {words_of(key)} is left out: its base model ({known[key][:12]}) is not that of the newest record ({known[newest][:12]})" for key in others]


def _mixed_problems(records: Mapping[Key, Record]) -> list[str]:
    """Members are compared on the same problems; where the digests say otherwise, a note does too."""
    digests: dict[str, set[str]] = {}
    for record in records.values():
        matrix = (record.get("report") or {}).get("score_matrix") or {}
        for row in matrix.get("problems_digest") or []:
            for name, digest in zip(matrix["domains"], row, strict=True):
                digests.setdefault(name, set()).update({digest} - {None})
    return [
        f"evaluations_not_comparable: domain {name} was measured with {len(found)} different sets of problems, seeds, sampling or verifier; differences between members mix these"
        for name, found in digests.items()
        if len(found) > 1
    ]


def run_of(record: Record, study: StudySpec) -> Run | None:
    """The record's run; None where it has no report."""
    setup = next((order.setup for order in study.all_orders() if order.name == record["order"]), ())
    return run_of_report(record.get("report") or {}, arm=record["arm"], order=record["order"], seed=record["seed"], setup=setup)
