"""Write one JSON tool call that does what the request asks; checked against the tool's JSON Schema, then by value."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonschema

from cluster.messages import Problem, Verdict
from cluster.spec.domains import ToolCallDomain
from rollout.domains.base import Drawn, Split, failed, passed

WORDS = ("bed", "hall", "bath", "shed", "attic", "porch", "study", "den")
NAMES = ("ann", "bob", "cleo", "dan", "eve", "finn", "gus", "ida")
INTEGER = {"type": "integer"}
TEXT = {"type": "string"}


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: its arguments, how they are drawn, and how people ask for it."""

    name: str
    properties: dict[str, dict[str, Any]]
    draw: Callable[[random.Random, int], dict[str, Any]]
    phrases: tuple[str, ...]

    def schema(self) -> dict[str, Any]:
        arguments = {"type": "object", "properties": self.properties, "required": list(self.properties), "additionalProperties": False}
        return {
            "type": "object",
            "properties": {"tool": {"const": self.name}, "args": arguments},
            "required": ["tool", "args"],
            "additionalProperties": False,
        }


TOOLS = (
    Tool("timer", {"min": INTEGER}, lambda g, top: {"min": g.randint(1, top)}, ("timer for {min} min", "wake me in {min} min")),
    Tool(
        "light",
        {"room": TEXT, "pct": INTEGER},
        lambda g, top: {"room": g.choice(WORDS), "pct": g.randint(1, top)},
        ("{room} light to {pct}", "set {pct} in the {room}"),
    ),
    Tool(
        "send",
        {"to": TEXT, "eur": INTEGER},
        lambda g, top: {"to": g.choice(NAMES), "eur": g.randint(1, top)},
        ("pay {to} {eur}", "send {eur} to {to}"),
    ),
    Tool("heat", {"room": TEXT, "deg": INTEGER}, lambda g, top: {"room": g.choice(WORDS), "deg": g.randint(1, top)}, ("{room} at {deg} deg", "{deg} deg in {room}")),
    Tool("call", {"to": TEXT}, lambda g, top: {"to": g.choice(NAMES)}, ("ring {to}", "call {to} now")),
    Tool("move", {"x": INTEGER, "y": INTEGER}, lambda g, top: {"x": g.randint(1, top), "y": g.randint(1, top)}, ("go to {x} {y}", "move {x} {y}")),
    Tool("lock", {"room": TEXT}, lambda g, top: {"room": g.choice(WORDS)}, ("lock {room}", "close the {room}")),
    Tool("buy", {"n": INTEGER, "for": TEXT}, lambda g, top: {"n": g.randint(1, top), "for": g.choice(NAMES)}, ("buy {n} for {for}", "{n} more for {for}")),
)


def compact(call: dict[str, Any]) -> str:
    return json.dumps(call, separators=(",", ":"))


class ToolCall:
    """``pay ann 12`` -> ``{"tool":"send","args":{"to":"ann","eur":12}}``"""

    def __init__(self, spec: ToolCallDomain, name: str, seed: int):
        self.name = name
        self._spec = spec
        self._tools = {tool.name: tool for tool in TOOLS[: spec.tools]}
        self._drawn = Drawn("tool_call", seed, self._draw)

    def size(self, split: Split) -> int | None:
        return None

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
        if not isinstance(given, dict) or given.get("tool") not in self._tools:
            return failed(f"tool is one of {' '.join(self._tools)}")
        wanted = problem.answer
        if given["tool"] != wanted["tool"]:
            return failed(f"not the tool {given['tool']}")
        fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(self._tools[wanted["tool"]].schema()).iter_errors(given))
        if fault is not None:
            return failed(f"schema: {fault.message[:60]}")
        wrong = [name for name, value in wanted["args"].items() if given["args"][name] != value]
        return failed("wrong " + " ".join(wrong)) if wrong else passed()
