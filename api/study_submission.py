"""From a parsed study file to checked members, with every fault in one answer.

Invariant: a study is accepted only if each of its members would be accepted as a job. A fault is told where its cause stands in the
study file: in the base job, in the stages of an order, or in the override of an arm; the first of these that has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.job_paths import with_absolute_paths
from api.record_checks import may_stand_in, record_faults, report_faults
from api.submission import MAX_FAULTS, Submission, canonical_hash, check_submission
from cluster.errors import SpecError
from cluster.spec.job import JobSpec
from cluster.spec.study import Arm, Member, Order, StudySpec, expand, member_document, set_pointer
from services.jobs.faults import parse_job, pointer
from services.jobs.input_hashes import input_hashes
from services.jobs.study_faults import PLACEHOLDER_STAGE, parse_study
from services.jobs.study_records import is_result
from services.jobs.study_rows import NewMember

OWN = ("name", "seed", "labels")
"""Fields of a job file in which members differ that are checked once against the machine."""
Fault = dict[str, str]
Key = tuple[str, str, str]
"""Of a job's fault wherever its stage stands: the stage's name, the pointer in it (or in the job), the detail."""


@dataclass(frozen=True, slots=True)
class StudySubmission:
    """An accepted study file."""

    spec: StudySpec
    members: tuple[NewMember, ...]
    spec_hash: str
    """Without the comparisons: they may be added while the study runs."""
    request_hash: str
    unmatched: tuple[str, ...]
    """Records that belong to no member, or to one with another base model or other data, as <arm>/<order>-<seed>."""


def check_study(
    payload: Any, *, records: Sequence[Any] = (), folders: Sequence[Path], cluster: dict[str, float] | None
) -> StudySubmission:
    """Parse, expand and check every member. ``folders``: where relative paths are looked up, the last one at any rate.

    Raises ``SpecError`` whose details hold all faults found.
    """
    admission = _Admission(folders, cluster)
    base = payload.get("base") if isinstance(payload, dict) else None
    base_faults = admission.faults_of(base) if isinstance(base, dict) else []
    base_parses = isinstance(base, dict) and admission.parses(base)
    parsed = parse_study(payload, base_is_sound=base_parses)
    faults = [dict(fault) for fault in parsed.faults] + [{**fault, "pointer": "/base" + fault["pointer"]} for fault in base_faults]
    study = parsed.spec
    if study is not None and base_parses:
        faults += [fault for fault in admission.member_faults(study, base_faults) if not parsed.made(fault["pointer"])]
    _refuse(faults + record_faults(records), study)
    members = expand(study)
    by_digest = {member.digest: member for member in members}
    fits = [admission.may_stand_in(record, by_digest.get(record["digest"]), study.name) for record in records]
    done = {record["digest"]: index for index, (record, fit) in enumerate(zip(records, fits, strict=True)) if fit and is_result(record)}
    _refuse(report_faults(study, {index: records[index] for index in done.values()}), study)
    return StudySubmission(
        spec=study,
        members=tuple(admission.new_member(member, records[done[member.digest]] if member.digest in done else None) for member in members),
        spec_hash=canonical_hash(study.model_dump(mode="json", exclude_unset=True, exclude={"comparisons"})),
        request_hash=canonical_hash([payload, list(records), list(map(str, folders))]),
        unmatched=tuple(f"{record['arm']}/{record['order']}-{record['seed']}" for record, fit in zip(records, fits, strict=True) if not fit),
    )


def _refuse(faults: list[Fault], study: StudySpec | None) -> None:
    if faults or study is None:
        count = len(faults)
        raise SpecError(f"the study file has {count} fault{'s' if count != 1 else ''}", details={"faults": faults[:MAX_FAULTS]})


class _Admission:
    """Checks of the jobs of one study: each model is hashed once, and members that differ in their seed alone are checked once."""

    def __init__(self, folders: Sequence[Path], cluster: dict[str, float] | None):
        self._folders = tuple(folders)
        self._cluster = cluster
        self._memo: dict[Any, Any] = {}
        self._checked: dict[str, Submission | list[Fault]] = {}

    def check(self, document: Mapping[str, Any]) -> Submission | list[Fault]:
        """The accepted job, or its faults, but for its ``OWN`` fields."""
        shared = {key: value for key, value in document.items() if key not in OWN} | {"name": "member"}
        alike = canonical_hash(shared)
        if alike not in self._checked:
            try:
                found = check_submission(self.with_paths(shared), base_dir=self._folders[-1], cluster=self._cluster, memo=self._memo)
            except SpecError as error:
                found = error.details["faults"]
            self._checked[alike] = found
        return self._checked[alike]

    def faults_of(self, document: Mapping[str, Any]) -> list[Fault]:
        found = self.check(document)
        return [*_own_faults(document), *(found if isinstance(found, list) else [])]

    def parses(self, document: Mapping[str, Any]) -> bool:
        """Whether the document is a job file, whatever this machine lacks."""
        try:
            JobSpec.model_validate(document)
        except ValueError:
            return False
        return True

    def with_paths(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """A copy with absolute paths, each from the first folder that has it."""
        for folder in self._folders:
            document = with_absolute_paths(document, folder)
        return dict(document)

    def new_member(self, member: Member, record: dict[str, Any] | None) -> NewMember:
        checked = None if record is not None else self.check(member.document)
        return NewMember(
            arm=member.arm,
            order=member.order,
            seed=member.seed,
            digest=member.digest,
            spec=None if checked is None else JobSpec.model_validate(self.with_paths(member.document)),
            resolved=None if checked is None else checked.resolved | {"inputs": input_hashes(checked.spec, checked.resolved)},
            record=record,
        )

    def may_stand_in(self, record: Mapping[str, Any], member: Member | None, study: str) -> bool:
        checked = None if member is None else self.check(member.document)
        return may_stand_in(record, member, study, checked if isinstance(checked, Submission) else None)

    # -- whose fault it is -------------------------------------------------------------------------------------------

    def member_faults(self, study: StudySpec, base_faults: list[Fault]) -> list[Fault]:
        """Faults of members that the base job does not have, each at its order or at its arm's override."""
        known = {_key(fault, [stage.name for stage in study.base.stages]) for fault in base_faults}
        found: list[Fault] = []
        for order_index, order in enumerate(study.all_orders()):
            of_order = self._faults_by_key(_bare(study, order), order)
            found += [
                _placed(_cause_of_order(study, order_index, fault), fault, f"order {order.name!r}")
                for key, fault in of_order.items()
                if key not in known
            ]
            for arm_index, arm in enumerate(study.arms):
                if arm.orders is not None and order.name not in arm.orders:
                    continue
                of_arm = self._faults_by_key(member_document(study, arm_index, order, order.seeds[0]), order)
                found += [
                    _placed(_cause(arm_index, arm, fault, order), fault, f"arm {arm.name!r}, order {order.name!r}")
                    for key, fault in of_arm.items()
                    if key not in known and key not in of_order
                ]
        first: dict[tuple[str, str], Fault] = {}
        for fault in found:
            # the same fault in the next order is the same fault
            first.setdefault((fault["pointer"], re.sub(r" \(at .*\)$", "", fault["detail"])), fault)
        return list(first.values())

    def _faults_by_key(self, document: dict[str, Any], order: Order) -> dict[Key, Fault]:
        return {_key(fault, list(order.stages)): fault for fault in self.faults_of(document)}


def _own_faults(document: Mapping[str, Any]) -> Iterator[Fault]:
    """Faults of the fields by which members may differ although they are checked once."""
    stand_in = {"model": {"path": "/stand-in"}, "stages": [{"name": "stand-in", **PLACEHOLDER_STAGE}]}
    try:
        parse_job({key: document[key] for key in OWN if key in document} | stand_in)
    except SpecError as error:
        yield from error.details["faults"]


def _cause_of_order(study: StudySpec, order_index: int, fault: Fault) -> str:
    if fault["pointer"].startswith("/labels"):
        return "/labels" if study.labels else "/base/labels"
    return f"/orders/{order_index}/stages" if study.orders else "/base"


def _bare(study: StudySpec, order: Order) -> dict[str, Any]:
    """The base job in this order, without any arm's changes."""
    unchanged = study.model_copy(update={"arms": (Arm(name=study.arms[0].name),)})
    return member_document(unchanged, 0, order, order.seeds[0])


def _key(fault: Fault, stages: list[str]) -> Key:
    parts = fault["pointer"].split("/")
    if parts[1:2] == ["stages"] and len(parts) > 2 and parts[2].isdigit() and int(parts[2]) < len(stages):
        return stages[int(parts[2])], "/".join(parts[3:]), fault["detail"]
    return "", fault["pointer"], fault["detail"]


def _placed(place: str, fault: Fault, where: str) -> Fault:
    return {**fault, "pointer": place, "detail": f"{fault['detail']} (at {fault['pointer'] or '/'} of the job of {where})"}


def _cause(arm_index: int, arm: Arm, fault: Fault, order: Order) -> str:
    """The override that leads furthest towards the faulty field; the arm's ``set`` where none leads there at all."""
    stage, rest, _ = _key(fault, list(order.stages))
    field = ["stages", stage, *rest.split("/")] if stage else rest.split("/")[1:]
    best, longest = None, 0
    for path in arm.set:
        parts = path.split(".")
        if stage and parts[:2] == ["stages", "*"]:
            parts[1] = stage
        shared = next((index for index, (one, other) in enumerate(zip(parts, field, strict=False)) if one != other), min(len(parts), len(field)))
        if shared > longest:
            best, longest = path, shared
    if best is None:
        return f"{pointer(('arms', arm_index))}/set" if len(arm.set) != 1 else set_pointer(arm_index, next(iter(arm.set)))
    return set_pointer(arm_index, best)
