"""A study file parsed, with every fault of its own in one answer, each with a pointer into the study file.

Invariant: the base job is looked at elsewhere (``api/study_submission.py``), as the job file that it is; here something with its
stage names stands in for one that does not parse, so that arms, orders, hypotheses and comparisons are looked at all the same.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from cluster.errors import SpecError
from cluster.spec.study import CONTRASTS, OverrideFault, StudySpec, override_faults
from services.jobs.faults import Fault, model_faults, parse_job, pointer

MAX_ROUNDS = 6
PLACEHOLDER_STAGE = {"domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}}
LISTS = ("arms", "orders", *CONTRASTS)
NAMED = ("duplicate", "unknown_name")
"""Faults of names: they are told of what stands in for a faulty part too, because it keeps its name."""


@dataclass(frozen=True, slots=True)
class ParsedStudy:
    """A study file as far as it could be read."""

    spec: StudySpec | None
    """What is left where faulty parts have made way; the study itself where there are no faults. None where nothing could be made of it."""
    faults: tuple[Fault, ...]
    replaced: frozenset[str]
    """Pointers of parts that are stand-ins: what is found below them is not the user's."""

    def made(self, place: str) -> bool:
        return _below(place, self.replaced)


def parse_study(payload: Any, *, base_is_sound: bool) -> ParsedStudy:
    """The study and every fault of its own parts. ``base_is_sound``: the base job parses, so that it need not be replaced."""
    if not isinstance(payload, dict):
        return ParsedStudy(None, (Fault("", "a study file is an object with name, base and arms", "invalid_type"),), frozenset())
    document = copy.deepcopy(payload)
    faults, replaced = [], set()
    if not base_is_sound:
        if not isinstance(payload.get("base"), dict):
            told = "'base' is required and missing" if "base" not in payload else "the base job is not an object"
            faults.append(Fault("/base", told, "missing" if "base" not in payload else "dict_type"))
        document["base"] = _stand_in(payload.get("base"))
        replaced.add("/base")
    spec = _look(document, faults, replaced)
    return ParsedStudy(spec, tuple(faults), frozenset(replaced))


def _look(document: dict[str, Any], faults: list[Fault], replaced: set[str]) -> StudySpec | None:
    """Round by round: what has faults makes way, so that what pydantic looks at only after it is looked at too."""
    for _ in range(MAX_ROUNDS):
        try:
            study = StudySpec.model_validate(document)
        except ValidationError as error:
            new = [fault for fault in _told(error, document) if fault.code in NAMED or not _below(fault.pointer, replaced)]
            faults += [fault for fault in new if fault not in faults]
            if not _make_way(document, new, replaced):
                return None
        else:
            wrong = override_faults(study)
            faults += [Fault(fault.pointer, fault.detail, "invalid_override") for fault in wrong if not _below(fault.pointer, replaced)]
            return _without(document, wrong) if wrong else study
    return None


def _without(document: dict[str, Any], wrong: Sequence[OverrideFault]) -> StudySpec:
    """The study without the overrides that lead nowhere."""
    for fault in wrong:
        _, _, arm, _, path = fault.pointer.split("/", 4)
        del document["arms"][int(arm)]["set"][path.replace("~1", "/").replace("~0", "~")]
    return StudySpec.model_validate(document)


def _told(error: ValidationError, document: dict[str, Any]) -> list[Fault]:
    named = [
        Fault(place, text, kind)
        for item in error.errors(include_url=False)
        if item["type"] in NAMED
        for kind, place, text in item["ctx"]["places"]
    ]
    return named or [fault for fault in model_faults(error, StudySpec, document) if not fault.pointer.startswith("/base/")]


def _below(place: str, replaced: set[str]) -> bool:
    return any(place == part or place.startswith(part + "/") for part in replaced)


def _make_way(document: dict[str, Any], faults: list[Fault], replaced: set[str]) -> bool:
    """Put stand-ins for the items that have faults, take out other fields; False where nothing changed."""
    changed = False
    for fault in faults:
        parts = fault.pointer.split("/")[1:]
        if not parts:
            continue
        items = document.get(parts[0])
        if parts[0] in LISTS and len(parts) > 1 and parts[1].isdigit() and isinstance(items, list) and int(parts[1]) < len(items):
            place = pointer(parts[:2])
            if fault.code in NAMED:
                item = items[int(parts[1])]
                item[parts[2]] = _name_that_fits(document, parts[2], item, parts[1])
                changed = True
            elif place not in replaced:
                items[int(parts[1])] = _item(parts[0], items[int(parts[1])], int(parts[1]), document)
                replaced.add(place)
                changed = True
        elif parts[0] in ("name", "arms", "base") and parts[0] not in replaced:
            document[parts[0]] = {"name": "stand-in", "arms": [{"name": "stand-in"}], "base": _stand_in(None)}[parts[0]]
            replaced.add(pointer(parts[:1]))
            changed = True
        elif document.pop(parts[0], None) is not None:
            changed = True
    return changed


def _name_that_fits(document: dict[str, Any], field: str, item: dict[str, Any], index: str) -> Any:
    """What may stand in a field whose name is taken, or means nothing."""
    if field == "name":
        return f"{item['name'][:50]}-{index}"
    return {"stages": [document["base"]["stages"][0]["name"]], "orders": None}.get(field, document["arms"][0]["name"])


def _item(kind: str, item: Any, index: int, document: dict[str, Any]) -> dict[str, Any]:
    """An item without faults that keeps the name, since others may refer to it."""
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not name or not all(letter.isascii() and (letter.islower() or letter.isdigit() or letter in "-_") for letter in name):
        name = f"stand-in-{index}"
    if kind == "arms":
        return {"name": name}
    if kind == "orders":
        return {"name": name, "stages": [document["base"]["stages"][0]["name"]], "seeds": [0]}
    arms = document.get("arms")
    arm = arms[0].get("name") if isinstance(arms, list) and arms and isinstance(arms[0], dict) else "stand-in"
    return {"name": name, "claim": "-", "figure": "gain", "arm": arm} | ({"expect": "higher"} if kind == "hypotheses" else {})


def _stand_in(base: Any) -> dict[str, Any]:
    """A sound job file with the stage names of one that has faults."""
    stages = base.get("stages") if isinstance(base, dict) else None
    names = [stage.get("name") for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    known = list(dict.fromkeys(name for name in names if isinstance(name, str))) or ["stand-in"]
    document = {"name": "stand-in", "model": {"path": "/stand-in"}, "stages": [{"name": name, **PLACEHOLDER_STAGE} for name in known]}
    try:
        parse_job(document)
    except SpecError:  # a stage name that is no name
        document["stages"] = [{"name": "stand-in", **PLACEHOLDER_STAGE}]
    return document
