"""From a parsed body to a checked job spec, with every fault in one answer.

Invariant: a submission is accepted only if the whole of it is free of faults. Where parts do not parse, the rest is
still checked against the environment: the faulty parts are cut out of a copy until what is left parses.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.jobs.admission import check_environment
from services.jobs.faults import parse_job

from cluster.errors import SpecError
from cluster.spec.job import JobSpec

MAX_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted job file."""

    spec: JobSpec
    resolved: dict[str, Any]
    spec_hash: str
    request_hash: str


def check_submission(payload: Any, *, base_dir: Path, cluster: dict[str, float]) -> Submission:
    """Parse and check against the environment. Raises ``SpecError`` whose details hold all faults found."""
    faults: list[dict[str, str]] = []
    salvage = _Salvage(payload)
    spec = None
    for _ in range(MAX_ROUNDS):
        try:
            spec = parse_job(salvage.document)
            break
        except SpecError as error:
            found = error.details.get("faults", [])
            faults += [salvage.original(fault) for fault in found if not salvage.made(fault)]
            if not salvage.cut(found):
                break
    resolved: dict[str, Any] = {}
    if spec is not None:
        environment, resolved = check_environment(spec, base_dir=base_dir, cluster=cluster)
        faults += [salvage.original(fault) for fault in environment]
    faults = _unique(faults)
    if faults or spec is None:
        count = len(faults)
        raise SpecError(f"the job file has {count} fault{'s' if count != 1 else ''}", details={"faults": faults})
    return Submission(spec=spec, resolved=resolved, spec_hash=canonical_hash(spec.model_dump(mode="json")), request_hash=canonical_hash(payload))


def canonical_hash(value: Any) -> str:
    """sha256 of the JSON with sorted keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _unique(faults: list[dict[str, str]]) -> list[dict[str, str]]:
    """Each fault once, in the order found."""
    seen: dict[tuple[str, str], dict[str, str]] = {}
    for fault in faults:
        seen.setdefault((fault["pointer"], fault["detail"]), fault)
    return list(seen.values())


@dataclass(slots=True)
class _Salvage:
    """A copy of a job file that shrinks; pointers into it translate back to the file as it was sent."""

    document: Any
    _stages: list[int] = field(default_factory=list)
    _cuts: list[str] = field(default_factory=list)
    """Pointers, as the user counts, of what was cut out."""

    def __post_init__(self) -> None:
        self.document = copy.deepcopy(self.document)
        stages = self.document.get("stages") if isinstance(self.document, dict) else None
        self._stages = list(range(len(stages))) if isinstance(stages, list) else []

    def original(self, fault: dict[str, str]) -> dict[str, str]:
        """The fault with its stage's number as the user counts it."""
        parts = fault["pointer"].split("/")
        if len(parts) > 2 and parts[1] == "stages" and parts[2].isdigit() and int(parts[2]) < len(self._stages):
            parts[2] = str(self._stages[int(parts[2])])
        return {**fault, "pointer": "/".join(parts)}

    def made(self, fault: dict[str, str]) -> bool:
        """Whether the fault lies at or above a cut, so that the cut may have made it: that one is not the user's."""
        at = self.original(fault)["pointer"]
        return at != "" and any(cut == at or cut.startswith(at + "/") for cut in self._cuts)

    def cut(self, faults: list[dict[str, str]]) -> bool:
        """Remove what the faults point at; False where nothing could be removed, so that the search ends."""
        changed = False
        drop: set[int] = set()
        for fault in faults:
            parts = [part.replace("~1", "/").replace("~0", "~") for part in fault["pointer"].split("/")[1:]]
            if fault["code"] != "missing" and self._delete(parts):
                self._cuts.append(self.original(fault)["pointer"])
                changed = True
            elif len(parts) >= 2 and parts[0] == "stages" and parts[1].isdigit():
                drop.add(int(parts[1]))
        for index in sorted(drop, reverse=True):
            if index < len(self._stages) and len(self._stages) > 1:
                del self.document["stages"][index], self._stages[index]
                changed = True
        return changed

    def _delete(self, parts: list[str]) -> bool:
        """Delete one key of an object; list items stay, so that numbers keep their meaning."""
        if not parts or parts in (["stages"], ["model"], ["name"]):
            return False
        holder = self.document
        for part in parts[:-1]:
            holder = _step(holder, part)
        if isinstance(holder, dict) and parts[-1] in holder:
            del holder[parts[-1]]
            return True
        return False


def _step(holder: Any, part: str) -> Any:
    if isinstance(holder, dict):
        return holder.get(part)
    if isinstance(holder, list) and part.isdigit() and int(part) < len(holder):
        return holder[int(part)]
    return None
