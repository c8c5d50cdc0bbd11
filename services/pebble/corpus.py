"""What pebble is trained on: the procedural domains' training problems, plain and with privileged context.

Its plain answers are held down on purpose: a share of the plain samples has a corrupted target, so that a policy that
samples at temperature 1 is right only part of the time although the right answer is its most likely one. Samples with a
solution or with feedback in context always have the right target, so a teacher that reads one is reliable. That is, in
miniature, the situation of a large model on a domain that it half knows. Evaluation problems are never drawn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.messages import Problem
from rollout.chat import ChatFormat
from rollout.context.solution import feedback_prompt, solution_prompt
from rollout.domains.base import Domain
from rollout.domains.tool_call import compact

Sample = tuple[np.ndarray, np.ndarray]
"""Prompt ids [P] and completion ids [T], the end of turn included."""


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One domain's share of the corpus."""

    domain: Domain
    weight: float
    """Relative number of samples."""
    corrupted: float
    """Share of plain samples whose target is wrong."""
    wrong: Callable[[Problem, random.Random], str]
    """Such a target."""


class Corpus:
    """An endless stream of samples, a function of the ingredients and the seed."""

    def __init__(
        self, ingredients: Sequence[Ingredient], chat: ChatFormat, *, with_solution: float, with_feedback: float, seed: int
    ):
        self._ingredients = tuple(ingredients)
        self._weights = [item.weight for item in ingredients]
        self._chat = chat
        self._with_solution = with_solution
        self._with_feedback = with_feedback
        self._random = random.Random(f"pebble-corpus/{seed}")
        self._next_index = [0] * len(self._ingredients)

    def batch(self, size: int) -> list[Sample]:
        return [self._sample() for _ in range(size)]

    def _sample(self) -> Sample:
        which = self._random.choices(range(len(self._ingredients)), self._weights)[0]
        item = self._ingredients[which]
        problem = item.domain.problem("train", self._next_index[which])
        self._next_index[which] += 1
        roll, target = self._random.random(), problem.solution
        if roll < self._with_solution:
            prompt = solution_prompt(problem, self._chat)
        elif roll < self._with_solution + self._with_feedback:
            verdict = item.domain.verify(problem, item.wrong(problem, self._random))
            prompt = feedback_prompt(problem, verdict.feedback, self._chat)
        else:
            prompt = self._chat.prompt_token_ids(problem.messages)
            if self._random.random() < item.corrupted:
                target = item.wrong(problem, self._random)
        return prompt, self._chat.completion_token_ids(target)


def corrupt(solution: str, generator: random.Random) -> str:
    """A plausible wrong answer, never the solution itself."""
    change = _corrupt_call if solution.startswith("{") else _corrupt_text
    wrong = solution
    while wrong == solution:
        wrong = change(solution, generator)
    return wrong


def _corrupt_text(solution: str, generator: random.Random) -> str:
    """One character changed, two neighbours swapped, or one character left out."""
    characters = list(solution)
    place = generator.randrange(len(characters))
    kind = generator.choice(("change", "swap", "omit"))
    if kind == "change" or len(characters) == 1:
        characters[place] = generator.choice("0123456789" if characters[place].isdigit() else "abcdefghijklmnopqrstuvwxyz")
    elif kind == "swap":
        other = (place + 1) % len(characters)
        characters[place], characters[other] = characters[other], characters[place]
    else:
        del characters[place]
    return "".join(characters)


def _corrupt_call(solution: str, generator: random.Random) -> str:
    """An argument of another value or type, or JSON that is not closed."""
    call = json.loads(solution)
    name = generator.choice(list(call["args"]))
    value = call["args"][name]
    kind = generator.choice(("value", "type", "unclosed"))
    if kind == "unclosed":
        return solution[:-1]
    if isinstance(value, int):
        call["args"][name] = str(value) if kind == "type" else generator.randint(1, 99)
    else:
        call["args"][name] = _corrupt_text(value, generator)
    return compact(call)
