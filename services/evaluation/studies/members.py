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
    notes += _other_models(found) + _mixed_problems(found)
    return members, {key: found[key] for key in members if key in found}, notes


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


def _mixed_problems(found: Mapping[Key, Record]) -> list[str]:
    """Domains of an order whose members were not all measured alike: their difference is shown of no pair, and their means are mixed."""
    digests: dict[tuple[str, str], set[str]] = {}
    for key, record in found.items():
        for name, digest in problem_digests(record.get("report")).items():
            digests.setdefault((key[1], name), set()).add(digest)
    return [
        f"evaluations_not_comparable: in order {order} domain {name} was measured with {len(of_domain)} different sets of problems, seeds, sampling or "
        "verifier; two members that differ in it are not compared, and means over members mix them (to measure one again, move its record away)"
        for (order, name), of_domain in digests.items()
        if len(of_domain) > 1
    ]


def problem_digests(report: Mapping[str, Any] | None) -> dict[str, str]:
    """Domain -> digest of what it was measured on; a domain of before digests were kept is not in it."""
    matrix = (report or {}).get("score_matrix") or {}
    rows = matrix.get("problems_digest") or []
    return {name: digest for row in rows for name, digest in zip(matrix["domains"], row, strict=True) if digest is not None}


def alike(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two members were scored on the same problems, of the domains that are known of both (``problem_digests``)."""
    return all(other.get(name, digest) == digest for name, digest in one.items())


def run_of(record: Record, study: StudySpec) -> Run | None:
    """The record's run; None where it has no report."""
    setup = next((order.setup for order in study.all_orders() if order.name == record["order"]), ())
    return run_of_report(record.get("report") or {}, arm=record["arm"], order=record["order"], seed=record["seed"], setup=setup)
