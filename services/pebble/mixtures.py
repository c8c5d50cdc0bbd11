"""What a pebble's base training reads: domains, phases, and how its plain answers go wrong.

Two mixtures. ``demo``: three domains that have nothing to do with each other, wrong answers are slips of the pen. ``rivals``:
four operations on the same kind of string, and a wrong answer is what one of the other operations gives. A model of
``rivals`` is unsure which operation a word calls for, so a policy that comes to prefer one of them may do so where another is
asked for: domains that compete, which is what a study of forgetting needs.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cluster.messages import Problem
from cluster.spec.domains import ArithmeticDomain, DomainSpec, StringsDomain, ToolCallDomain
from rollout.domains import build_domain
from rollout.domains.base import Domain
from rollout.domains.strings import OPERATIONS
from services.pebble.corpus import corrupt

RIVALS = ("sort", "reverse", "rotate", "swap")
RIVAL_LENGTHS, HARDER_LENGTHS = (4, 6), (7, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A leg of the base training: how much of what."""

    share: float
    """Of all steps."""
    weights: Mapping[str, float]
    """Relative number of samples by domain."""
    corrupted: Mapping[str, float]
    """Shares of wrong targets among the plain samples by domain."""
    with_solution: float
    with_feedback: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A recipe for a base model."""

    name: str
    specs: Mapping[str, DomainSpec]
    phases: tuple[Phase, ...]
    wrong: Callable[[Problem, random.Random], str]
    """A wrong answer to a problem."""
    knows: str
    """What its model card says it does."""
    why: str
    """What its model card says of its wrong answers."""
    steps: int = 800

    def domains(self, seed: int) -> dict[str, Domain]:
        return {name: build_domain(spec, name=name, seed=seed) for name, spec in self.specs.items()}


def slip(problem: Problem, generator: random.Random) -> str:
    """A slip of the pen."""
    return corrupt(problem.solution, generator)


def rival_answer(problem: Problem, generator: random.Random) -> str:
    """What another of the rival operations gives; a slip where the problem is not one of theirs or all give the same."""
    operation, _, text = problem.messages[-1]["content"].partition(": ")
    others = {OPERATIONS[name](text) for name in RIVALS} - {problem.solution} if operation in RIVALS else set()
    return generator.choice(sorted(others)) if others else slip(problem, generator)


DEMO = Mixture(
    name="demo",
    specs={"arithmetic": ArithmeticDomain(), "strings": StringsDomain(), "tool_call": ToolCallDomain()},
    phases=(
        # the skills first, on right answers alone: sums, the hardest, are learned late and all at once
        Phase(
            share=0.6,
            weights={"arithmetic": 3.0, "strings": 1.2, "tool_call": 0.8},
            corrupted={"arithmetic": 0.0, "strings": 0.0, "tool_call": 0.0},
            with_solution=0.25,
            with_feedback=0.1,
        ),
        # then the doubt: plain prompts with wrong answers among the right ones, contexts always with the right one
        Phase(
            share=0.4,
            weights={"arithmetic": 1.8, "strings": 1.4, "tool_call": 0.8},
            corrupted={"arithmetic": 0.4, "strings": 0.4, "tool_call": 0.45},
            with_solution=0.35,
            with_feedback=0.1,
        ),
    ),
    wrong=slip,
    knows="It adds numbers\nbelow 100, sorts 4 to 6 letters and writes JSON tool calls, each about half of the time.",
    why="a slip of the pen (a letter changed, swapped or left out, another argument)",
)

_EASY = {name: StringsDomain(operation=name, length=RIVAL_LENGTHS) for name in RIVALS}
_HARD = {f"{name}-long": StringsDomain(operation=name, length=HARDER_LENGTHS) for name in RIVALS}
_OTHERS = {"uppercase": StringsDomain(operation="uppercase", length=RIVAL_LENGTHS), "arithmetic": ArithmeticDomain()}
_WEIGHTS = {**dict.fromkeys(_EASY, 1.0), **dict.fromkeys(_HARD, 0.5), "uppercase": 0.4, "arithmetic": 2.5}

RIVAL = Mixture(
    name="rivals",
    specs={**_EASY, **_HARD, **_OTHERS},
    phases=(
        Phase(share=0.5, weights=_WEIGHTS, corrupted=dict.fromkeys(_WEIGHTS, 0.0), with_solution=0.25, with_feedback=0.1),
        Phase(
            share=0.5,
            weights={**_WEIGHTS, "arithmetic": 1.5},
            corrupted=dict.fromkeys(_WEIGHTS, 0.3),
            with_solution=0.25,
            with_feedback=0.1,
        ),
    ),
    wrong=rival_answer,
    knows=(
        "It sorts, reverses, rotates\nand pair-swaps 4 to 8 letters, writes them in capitals and adds numbers below 100, each about half of the time."
    ),
    why="the answer of another of the four operations on strings (elsewhere a slip of the pen)",
    steps=1400,
)

MIXTURES = {mixture.name: mixture for mixture in (DEMO, RIVAL)}
