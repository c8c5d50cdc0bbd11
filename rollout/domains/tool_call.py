"""Write one JSON tool call that does what the request asks; checked against the tool's JSON Schema, then by value.

Requests, names and keys are short on purpose: a character-level miniature reads and writes them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonschema

from cluster.messages import Problem, Verdict
from cluster.spec.domains import ToolCallDomain
from rollout.domains.base import Procedural, Split, failed, passed

ROOMS = ("bed", "hall", "bath", "shed", "attic", "porch", "study", "den")
NAMES = ("ann", "bob", "cleo", "dan", "eve", "finn", "gus", "ida")
INTEGER = {"type": "integer"}
TEXT = {"type": "string"}


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its arguments as JSON Schema, how they are drawn, and how people ask for it."""

    name: str
    properties: dict[str, dict[str, Any]]
    draw: Callable[[random.Random, int], dict[str, Any]]
    phrases: tuple[str, ...]

    def schema(self) -> dict[str, Any]:
        arguments = _object(self.properties)
        return _object({"tool": {"const": self.name}, "args": arguments})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _amount(*keys: str) -> Callable[[random.Random, int], dict[str, Any]]:
    """Draws numbers from 1 to the largest value for ``keys``."""
    return lambda generator, top: {key: generator.randint(1, top) for key in keys}


def _choice(key: str, words: tuple[str, ...], amount: str | None = None) -> Callable[[random.Random, int], dict[str, Any]]:
    """Draws one of ``words`` for ``key``, and a number for ``amount`` where it is given."""

    def draw(generator: random.Random, top: int) -> dict[str, Any]:
        drawn: dict[str, Any] = {key: generator.choice(words)}
        return drawn if amount is None else drawn | {amount: generator.randint(1, top)}

    return draw


TOOLS = (
    Tool("timer", {"min": INTEGER}, _amount("min"), ("timer for {min} min", "wake me in {min} min")),
    Tool("light", {"room": TEXT, "pct": INTEGER}, _choice("room", ROOMS, "pct"), ("{room} light to {pct}", "set {pct} in the {room}")),
    Tool("send", {"to": TEXT, "eur": INTEGER}, _choice("to", NAMES, "eur"), ("pay {to} {eur}", "send {eur} to {to}")),
    Tool("heat", {"room": TEXT, "deg": INTEGER}, _choice("room", ROOMS, "deg"), ("{room} at {deg} deg", "{deg} deg in {room}")),
    Tool("call", {"to": TEXT}, _choice("to", NAMES), ("ring {to}", "call {to} now")),
    Tool("move", {"x": INTEGER, "y": INTEGER}, _amount("x", "y"), ("go to {x} {y}", "move {x} {y}")),
    Tool("lock", {"room": TEXT}, _choice("room", ROOMS), ("lock {room}", "close the {room}")),
    Tool("buy", {"for": TEXT, "n": INTEGER}, _choice("for", NAMES, "n"), ("buy {n} for {for}", "{n} more for {for}")),
)


def compact(call: dict[str, Any]) -> str:
    return json.dumps(call, separators=(",", ":"))


class ToolCall(Procedural):
    """``pay ann 12`` -> ``{"tool":"send","args":{"to":"ann","eur":12}}``"""

    def __init__(self, spec: ToolCallDomain, name: str, seed: int):
        super().__init__(spec, name, seed, family="tool_call")
        self._tools = {tool.name: tool for tool in TOOLS[: spec.tools]}

    def _draw(self, generator: random.Random) -> str:
        """The content: the wanted call and which phrase asks for it, as JSON."""
        tool = generator.choice(tuple(self._tools.values()))
        call = {"tool": tool.name, "args": tool.draw(generator, self._spec.max_value)}
        return json.dumps([call, generator.randrange(len(tool.phrases))])

    def problem(self, split: Split, index: int) -> Problem:
        call, phrase = json.loads(self._drawn.content(split, index))
        tool = self._tools[call["tool"]]
        return Problem(
            problem_id=f"{self.name}/{split}/{index}",
            domain=self.name,
            messages=({"role": "user", "content": "json: " + tool.phrases[phrase].format(**call["args"])},),
            solution=compact(call),
            answer=call,
        )

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        try:
            given = json.loads(completion_text)
        except (ValueError, RecursionError):
            return failed("not JSON")
        wanted = problem.answer
        if isinstance(given, dict) and "tool" in given and given["tool"] != wanted["tool"]:
            known = isinstance(given["tool"], str) and given["tool"] in self._tools
            return failed("wrong tool" if known else "no such tool")
        schema = self._tools[wanted["tool"]].schema()
        fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(given))
        if fault is not None:
            return failed(in_words(fault))
        wrong = [name for name, value in wanted["args"].items() if given["args"][name] != value]
        return failed("wrong value for " + " and ".join(wrong)) if wrong else passed()


def in_words(fault: jsonschema.ValidationError) -> str:
    """A schema fault in a few words: ``pct must be integer``, ``missing room``, ``extra field``."""
    where = str(fault.absolute_path[-1]) if fault.absolute_path else "answer"
    if fault.validator == "required":
        return "missing " + next(name for name in fault.validator_value if name not in fault.instance)
    if fault.validator == "additionalProperties":
        return "extra field"
    return f"{where} must be {fault.validator_value}"
