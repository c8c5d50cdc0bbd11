"""Turns what pydantic says about a job file into faults that name the field, the value and what is allowed.

Invariant: every error of the job file is in one answer, each with a JSON pointer (RFC 6901) into the file as it was sent:
the names that pydantic inserts for the branches of a union are not part of the file and not of the pointer.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from cluster.errors import SpecError
from cluster.spec.job import ONE_DOMAIN, ONE_SOURCE, JobSpec, ResolvedStage, resolve_stage

MAX_SHOWN_CHARACTERS = 80
CANNOT_LEARN = "cannot_learn"
"""The error type of ``cluster.spec.base.cannot_learn``, and the code of its faults."""
COMPARISONS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
EXPECTED_TYPES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "a string",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "tuple_type": "a list",
    "list_type": "a list",
    "finite_number": "a finite number",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a submission."""

    pointer: str
    """JSON pointer into the job file, such as /stages/1/method/recipe; empty for the file as a whole."""
    detail: str
    """What is wrong, with the value and what is allowed."""
    code: str
    """Machine-readable kind."""

    def __getitem__(self, name: str) -> str:
        """A fault reads as the object that the API sends, too: ``dict(fault)``."""
        return asdict(self)[name]

    def keys(self) -> Iterator[str]:
        return iter(self.__dataclass_fields__)


def parse_job(payload: object) -> JobSpec:
    """The job spec in a parsed file. Raises ``SpecError`` whose details hold every fault, as dicts."""
    faults = [*_duplicate_names(payload), *_stages_without_either(payload)]
    try:
        job = JobSpec.model_validate(payload)
    except ValidationError as error:
        said = ("duplicate stage name", ONE_DOMAIN, ONE_SOURCE)
        told = [fault for fault in model_faults(error, JobSpec, payload) if not (faults and fault.detail.startswith(said))]
        raise spec_error([*told, *faults]) from None
    for index in range(len(job.stages)):
        try:
            resolve_stage(job, index)
        except ValidationError as error:  # the recipe's parameters are fine one by one and make no method together
            faults += _method_faults(error, index)
    if faults:
        raise spec_error(faults)
    return job


def spec_error(faults: Sequence[Fault]) -> SpecError:
    """The error that carries these faults."""
    count = len(faults)
    return SpecError(f"the job file has {count} fault{'s' if count != 1 else ''}", details={"faults": [asdict(fault) for fault in faults]})


def pointer(parts: Sequence[str | int]) -> str:
    """A JSON pointer from keys and indices."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)


def did_you_mean(word: object, allowed: Sequence[str]) -> str:
    """``; did you mean 'x'?`` where a name is close, and an empty string otherwise."""
    close = difflib.get_close_matches(str(word), allowed, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def show(value: object) -> str:
    """A value as a fault quotes it."""
    text = ascii(value)
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 4] + " ..."


def _stages(payload: object) -> list[object]:
    stages = payload.get("stages") if isinstance(payload, dict) else None
    return list(stages) if isinstance(stages, list | tuple) else []


EITHER = ((("domain", "domains"), ONE_DOMAIN), (("method", "policy"), ONE_SOURCE))
"""Pairs of fields of which a stage has exactly one, and what is said of one that has none or both."""


def _stages_without_either(payload: object) -> list[Fault]:
    """Looked for here because pydantic does so only where all else in the stage is fine; so are duplicate names."""
    return [
        Fault(pointer(("stages", index)), words, "value_error")
        for index, stage in enumerate(_stages(payload))
        if isinstance(stage, dict)
        for (one, other), words in EITHER
        if (stage.get(one) is None) == (stage.get(other) is None)
    ]


def _duplicate_names(payload: object) -> list[Fault]:
    """Stages with a name that an earlier one has."""
    first: dict[str, int] = {}
    found = []
    for index, stage in enumerate(_stages(payload)):
        name = stage.get("name") if isinstance(stage, dict) else None
        if isinstance(name, str) and first.setdefault(name, index) != index:
            detail = f"duplicate stage name {show(name)}, which stage {first[name]} has; every stage needs its own"
            found.append(Fault(pointer(("stages", index, "name")), detail, "duplicate_name"))
    return found


def model_faults(error: ValidationError, model: type[BaseModel], payload: object) -> list[Fault]:
    """What pydantic found in a payload of this model, with pointers into the payload as it was sent."""
    found: dict[tuple[str, str], Fault] = {}
    for item in error.errors(include_url=False):
        parts, holder, target = _locate(model, item["loc"])
        if _beside_the_point(item, payload, parts):
            continue
        discriminator = item.get("ctx", {}).get("discriminator", "").strip("'")
        if item["type"] in ("union_tag_invalid", "union_tag_not_found") and discriminator:
            parts = (*parts, discriminator)
        code = "missing" if item["type"] == "union_tag_not_found" else item["type"]
        for detail in _reasons(item) or [_detail(item, holder, target, parts[-1] if parts else None)]:
            found.setdefault((pointer(parts), detail), Fault(pointer(parts), detail, code))
    return list(found.values())


def _method_faults(error: ValidationError, index: int) -> list[Fault]:
    """What is wrong with what a recipe became: at the method, or at the stage whose sampling or domains it does not go with."""
    of_stage = error.title == ResolvedStage.__name__
    where = pointer(("stages", index) if of_stage else ("stages", index, "method"))
    return [
        Fault(where, reason, item["type"] if item["type"] == CANNOT_LEARN else "invalid_method")
        for item in error.errors(include_url=False)
        for reason in _reasons(item) or [_detail(item, None, None, None)]
    ]


def _reasons(item: dict) -> list[str]:
    """The several things that one error of ours may say."""
    return item["ctx"]["reasons"] if item["type"] == CANNOT_LEARN else []


def _beside_the_point(item: dict, payload: object, parts: tuple) -> bool:
    """What says nothing new: a list that is empty only because its items have faults, the branch of a union not taken."""
    if item["type"] == "too_short" and item["input"]:
        return True
    label = str(item["loc"][-1]) if item["loc"] else ""
    is_list = isinstance(_value_at(payload, parts), list | tuple)
    return (label.startswith("literal[") and is_list) or (label.startswith("tuple[") and not is_list)


def _value_at(payload: object, parts: tuple) -> Any:
    for part in parts:
        try:
            payload = payload[part]
        except (KeyError, IndexError, TypeError):
            return None
    return payload


# -- what stands where in the spec -----------------------------------------------------------------------------------


def _locate(model: type[BaseModel], location: tuple) -> tuple[tuple[str | int, ...], Any, Any]:
    """The location without the names of union branches, the type of what holds its last part, and that part's own."""
    parts: list[str | int] = []
    current: Any = model
    holder: Any = None
    whole: Any = model
    for position in location:
        branch = _branch(current, position)
        if branch is not None:
            current, whole = branch, current
            continue
        holder, current = current, _member(current, position)
        whole = current
        if position != "[key]":
            parts.append(position)
    return tuple(parts), holder, whole


def _options(annotation: Any) -> list[Any]:
    """The types that a value may have, without None and without ``Annotated``."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in _options(part)]
    return [] if annotation in (None, type(None)) else [annotation]


def _branch(annotation: Any, position: object) -> Any:
    """The branch of a union that pydantic names here, or None where this is a part of the file."""
    options = _options(annotation)
    if len(options) < 2 or not isinstance(position, str):
        return None
    for option in options:
        if position in _tags(option):
            return option
    if position.startswith(("tuple[", "list[", "literal[", "dict[")):
        kind = position.split("[")[0]
        return next((option for option in options if str(typing.get_origin(option) or option).lower().find(kind) >= 0), None)
    return next((option for option in options if getattr(option, "__name__", None) == position), None)


def _tags(option: Any) -> list[str]:
    if not (isinstance(option, type) and issubclass(option, BaseModel)):
        return []
    return [option.model_fields[name].default for name in ("kind", "recipe") if name in option.model_fields]


def _member(annotation: Any, position: object) -> Any:
    """The type of a field, an item or a value of what ``annotation`` describes."""
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel) and position in option.model_fields:
            return option.model_fields[position].annotation
        arguments = typing.get_args(option)
        if typing.get_origin(option) in (tuple, list) and isinstance(position, int) and arguments:
            return arguments[0]
        if typing.get_origin(option) is dict and arguments:
            return arguments[1]
    return None


def _field_names(annotation: Any) -> list[str]:
    return [name for option in _options(annotation) if isinstance(option, type) and issubclass(option, BaseModel) for name in option.model_fields]


# -- in words --------------------------------------------------------------------------------------------------------


def _detail(item: dict, holder: Any, target: Any, last: str | int | None) -> str:
    kind, value, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "extra_forbidden":
        allowed = _field_names(holder)
        return f"unknown field {last!r}{did_you_mean(last, allowed)}" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    if kind == "missing":
        return f"{last!r} is required and missing"
    if kind == "union_tag_invalid":
        allowed = [word.strip().strip("'") for word in context["expected_tags"].split(",")]
        return f"unknown {last} {context['tag']!r}{did_you_mean(context['tag'], allowed)}; allowed: {', '.join(allowed)}"
    if kind == "union_tag_not_found":
        allowed = [tag for option in _options(target) for tag in _tags(option)]
        return f"{last!r} is required and missing" + (f"; allowed: {', '.join(allowed)}" if allowed else "")
    if kind == "literal_error":
        allowed = [word.strip("'") for word in re.split(r", | or ", context["expected"])]
        or_list = " or a list" if any(typing.get_origin(option) is tuple for option in _options(target)) else ""
        return f"{show(value)} is not allowed{did_you_mean(value, allowed)}; allowed: {context['expected']}{or_list}"
    if kind in COMPARISONS:
        bound, words = COMPARISONS[kind]
        return f"{show(value)} is not allowed; must be {words} {context[bound]}"
    if kind in EXPECTED_TYPES:
        return f"{show(value)} is not {EXPECTED_TYPES[kind]}"
    if kind == "string_pattern_mismatch":
        description = " (lower-case letters, digits, '-' and '_', at most 63)" if "62" in context["pattern"] else ""
        return f"{show(value)} does not match {context['pattern']}{description}"
    message = item["msg"].removeprefix("Value error, ")
    return message if kind == "value_error" else f"{message}, got {show(value)}"
