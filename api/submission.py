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

from cluster.errors import SpecError
from cluster.spec.job import JobSpec
from services.jobs.admission import check_environment
from services.jobs.faults import parse_job

MAX_ROUNDS = 12
MAX_FAULTS = 200
"""Beyond this the rest is not listed: it is not a job file."""


@dataclass(frozen=True, slots=True)
class Submission:
    """An accepted job file."""

    spec: JobSpec
    resolved: dict[str, Any]
    spec_hash: str
    request_hash: str


def check_submission(
    payload: Any, *, base_dir: Path, cluster: dict[str, float] | None, memo: dict[Any, Any] | None = None
) -> Submission:
    """Parse and check against the environment. Raises ``SpecError`` whose details hold all faults found.

    ``memo`` is shared by the jobs of one admission: each model is hashed and each data set read once.
    """
    salvage = _Salvage(copy.deepcopy(payload))
    faults = salvage.rename_duplicates()
    spec = None
    for _ in range(MAX_ROUNDS):
        try:
            spec = parse_job(salvage.document)
            break
        except SpecError as error:
            found = error.details["faults"][:MAX_FAULTS]
            faults += [fault for fault in found if not salvage.made(fault)]
            if len(faults) >= MAX_FAULTS or not salvage.cut(found):
                break
    resolved: dict[str, Any] = {}
    if spec is not None:
        environment, resolved = check_environment(spec, base_dir=base_dir, cluster=cluster, memo=memo)
        faults += [dict(fault) for fault in environment if not salvage.made(fault)]
    faults = _unique(faults)[:MAX_FAULTS]
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


PLACEHOLDER_STAGE = {"domain": {"kind": "arithmetic"}, "method": {"recipe": "sft"}}
PLACEHOLDERS: dict[str, Any] = {"name": "placeholder", "model": {"path": "/placeholder/which/does/not/exist"}, "stages": [{"name": "placeholder", **PLACEHOLDER_STAGE}]}
"""What stands in for the required parts of a job file while the rest is looked at."""


@dataclass(slots=True)
class _Salvage:
    """A copy of a job file in which faulty parts make way, so that what stands behind them is looked at too.

    Places keep their numbers, so every pointer into the copy is one into the file as it was sent.
    """

    document: Any
    _deleted: list[str] = field(default_factory=list)
    _replaced: list[str] = field(default_factory=list)

    def rename_duplicates(self) -> list[dict[str, str]]:
        """The faults of stages that have an earlier one's name; in the copy each gets a name of its own."""
        faults, first = [], {}
        stages = self.document.get("stages") if isinstance(self.document, dict) else None
        for index, stage in enumerate(stages if isinstance(stages, list) else []):
            name = stage.get("name") if isinstance(stage, dict) else None
            if not isinstance(name, str):
                continue
            if name in first:
                detail = f"duplicate stage name {name[:80]!r}: /stages/{first[name]} has it already; every stage needs its own"
                faults.append({"pointer": f"/stages/{index}/name", "detail": detail, "code": "duplicate"})
                stage["name"] = f"placeholder-{index}"
            first.setdefault(name, index)
        return faults

    def made(self, fault: Any) -> bool:
        """Whether the fault comes from the copy's changes: that one is not the user's."""
        at = fault["pointer"]
        if any(at == place or at.startswith(place + "/") for place in self._replaced):
            return True
        return any(at == place or (place.startswith(at + "/") and place.rpartition("/")[2] in fault["detail"]) for place in self._deleted)

    def cut(self, faults: list[dict[str, str]]) -> bool:
        """Take out what the faults point at; False where nothing could be, so that the search ends."""
        changes = [self._make_way(fault) for fault in faults] if isinstance(self.document, dict) else []
        return any(changes)

    def _make_way(self, fault: dict[str, str]) -> bool:
        parts = [part.replace("~1", "/").replace("~0", "~") for part in fault["pointer"].split("/")[1:]]
        if not parts:
            return False
        required = len(parts) == 1 and parts[0] in PLACEHOLDERS
        if fault["code"] != "missing" and not required and self._delete(parts):
            self._deleted.append(fault["pointer"])
            return True
        return self._replace(parts)

    def _delete(self, parts: list[str]) -> bool:
        holder = self.document
        for part in parts[:-1]:
            holder = _step(holder, part)
        if isinstance(holder, dict) and parts[-1] in holder:
            del holder[parts[-1]]
            return True
        return False

    def _replace(self, parts: list[str]) -> bool:
        """Put a placeholder for the stage, or for the section, that the fault lies in."""
        stages = self.document.get("stages")
        in_stage = parts[0] == "stages" and len(parts) > 1 and parts[1].isdigit() and isinstance(stages, list)
        place = "/".join(["", *parts[: 2 if in_stage else 1]])
        if place in self._replaced:
            return False
        if in_stage and int(parts[1]) < len(stages):
            stages[int(parts[1])] = {"name": f"placeholder-{parts[1]}", **PLACEHOLDER_STAGE}
        elif parts[0] in PLACEHOLDERS:
            self.document[parts[0]] = copy.deepcopy(PLACEHOLDERS[parts[0]])
        elif self.document.pop(parts[0], None) is None:
            return False
        self._replaced.append(place)
        return True


def _step(holder: Any, part: str) -> Any:
    if isinstance(holder, dict):
        return holder.get(part)
    if isinstance(holder, list) and part.isdigit() and int(part) < len(holder):
        return holder[int(part)]
    return None
