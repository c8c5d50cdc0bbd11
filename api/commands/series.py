"""A job file that trains nothing: a base model and checkpoints that another trainer wrote, made from a command line's arguments.

Pure. What the arguments say wrong is refused here with the argument; what the checkpoints are is the service's to check.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from api.commands.console import Refused

HUB = "hub:"
"""Before a Hugging Face id, which may end in @REVISION; everything else is a folder."""
MAX_NAME = 63
_NOT_IN_NAMES = re.compile(r"[^a-z0-9_-]+")


def build_series(
    base: str, checkpoints: Sequence[str], domains: Sequence[str], trained_on: Sequence[str], *, name: str = "evaluate", problems: int | None = None
) -> dict[str, Any]:
    """The job file. ``domains`` are NAME=KIND[:key=value,...]; ``trained_on`` names a domain, or several joined by +, for each
    checkpoint in order, or once for all of them. Raises ``Refused``."""
    if not checkpoints:
        raise Refused("evaluate takes a job file, or a base model and one checkpoint or more")
    known = dict(map(parse_domain, domains))
    if len(known) < len(domains):
        raise Refused("--domain: two domains have the same name; each needs its own")
    if not known:
        raise Refused("--domain is missing: what are the checkpoints scored on? --domain math=dataset:path=math.jsonl, or --domain sums=arithmetic:digits=2")
    own = _own_domains(checkpoints, trained_on, list(known))
    stages = [
        {"name": stage, "policy": model_source(checkpoint), "domains": [{"name": part, "domain": known[part]} for part in parts]}
        for stage, checkpoint, parts in zip(stage_names(checkpoints), checkpoints, own, strict=True)
    ]
    evaluation: dict[str, Any] = {} if problems is None else {"problems": problems}
    others = [{"name": part, "domain": domain} for part, domain in known.items() if not any(part in parts for parts in own)]
    if others:
        evaluation["domains"] = others
    return {"version": 1, "name": name, "model": model_source(base), "stages": stages, "evaluation": evaluation}


def _own_domains(checkpoints: Sequence[str], trained_on: Sequence[str], known: list[str]) -> list[list[str]]:
    """What each checkpoint was trained on: retention figures need it."""
    if not trained_on and len(known) == 1:
        trained_on = known
    if len(trained_on) not in (1, len(checkpoints)):
        raise Refused(
            f"--trained-on is given {len(trained_on)} times for {len(checkpoints)} checkpoints; give it once for each in order, or once for all: "
            "what a checkpoint was trained on tells gain from forgetting"
        )
    parts = [[part for part in text.split("+") if part] for text in trained_on]
    for text, names in zip(trained_on, parts, strict=True):
        unknown = [part for part in names if part not in known]
        if unknown or not names:
            raise Refused(f"--trained-on {text!r}: {', '.join(unknown) or 'nothing'} is no --domain; there are {', '.join(known)}")
    return parts if len(parts) == len(checkpoints) else parts * len(checkpoints)


def parse_domain(text: str) -> tuple[str, dict[str, Any]]:
    """NAME=KIND[:key=value,...]; a value is read as YAML, and commas inside brackets are its own."""
    name, equals, rest = text.partition("=")
    kind, _, options = rest.partition(":")
    if not equals or not name or not kind:
        raise Refused(f"--domain {text!r} is not of the form NAME=KIND or NAME=KIND:key=value,key=value")
    domain: dict[str, Any] = {"kind": kind}
    for part in _split(options):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise Refused(f"--domain {text!r}: {part!r} is not of the form key=value")
        try:
            domain[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise Refused(f"--domain {text!r}: the value of {key} is not YAML: {' '.join(str(error).split())}") from None
    return name, domain


def _split(text: str) -> list[str]:
    """At commas outside brackets, braces and double quotes."""
    parts, depth, quoted = [""], 0, False
    for character in text:
        quoted ^= character == '"'
        depth += 0 if quoted else (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def model_source(text: str) -> dict[str, str]:
    """A folder, or hub:ID[@REVISION]."""
    if not text.startswith(HUB):
        return {"path": str(Path(text).expanduser())}
    identity, _, revision = text.removeprefix(HUB).partition("@")
    return {"id": identity} | ({"revision": revision} if revision else {})


def stage_names(checkpoints: Sequence[str]) -> list[str]:
    """A readable name for each: as much of the end of its path as tells it from the others."""
    paths = [[part for part in Path(text.removeprefix(HUB)).parts if part not in ("/", ".", "..", "~")] or ["checkpoint"] for text in checkpoints]
    for depth in range(1, max(map(len, paths)) + 1):
        names = [_as_name("-".join(parts[-depth:])) for parts in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{_as_name(parts[-1])[: MAX_NAME - 4]}-{number}" for number, parts in enumerate(paths, 1)]


def _as_name(text: str) -> str:
    name = _NOT_IN_NAMES.sub("-", text.lower())[-MAX_NAME:]
    return name.strip("-_") or "checkpoint"
