"""What pebble is trained on: the procedural domains' training problems, plain and with privileged context.

Its plain answers are held down on purpose: a share of the plain samples has a corrupted target, so that a policy that
samples at temperature 1 is right only part of the time although the right answer is its most likely one. Samples with the
solution in context are never corrupted, so a teacher that reads one is reliable. That is the situation of a large model on
a domain that it half knows, in miniature.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from cluster.spec.domains import ArithmeticDomain, StringsDomain, ToolCallDomain
from rollout.chat import ChatFormat
from rollout.context.solution import feedback_prompt, solution_prompt
from rollout.domains.arithmetic import Arithmetic
from rollout.domains.strings import Strings
from rollout.domains.tool_call import ToolCall, compact


@dataclass(frozen=True, slots=True)
class Ingredient:
    """One domain's share of the corpus."""

    domain: object
    weight: float
    corrupted: float
    """Share of plain samples whose target is wrong."""


def demo_domains(seed: int) -> dict[str, object]:
    """The three domains of the demo job, as it asks for them."""
    return {
        "arithmetic": Arithmetic(ArithmeticDomain(), "arithmetic", seed),
        "strings": Strings(StringsDomain(), "strings", seed),
        "tool_call": ToolCall(ToolCallDomain(), "tool_call", seed),
    }


class Corpus:
    """An endless stream of (prompt ids, completion ids), a function of the seed."""

    def __init__(self, ingredients: list[Ingredient], chat: ChatFormat, *, with_solution: float, with_feedback: float, seed: int):
        self._ingredients = ingredients
        self._chat = chat
        self._with_solution = with_solution
        self._with_feedback = with_feedback
        self._random = random.Random(f"pebble-corpus/{seed}")
        self._next_index = dict.fromkeys(range(len(ingredients)), 0)

    def batch(self, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
        return [self._sample() for _ in range(size)]

    def _sample(self) -> tuple[np.ndarray, np.ndarray]:
        weights = [item.weight for item in self._ingredients]
        which = self._random.choices(range(len(weights)), weights)[0]
        item = self._ingredients[which]
        problem = item.domain.problem("train", self._next_index[which])
        self._next_index[which] += 1
        roll, target = self._random.random(), problem.solution
        if roll < self._with_solution:
            prompt = solution_prompt(problem, self._chat)
        elif roll < self._with_solution + self._with_feedback:
            verdict = item.domain.verify(problem, corrupt(problem.solution, self._random))
            prompt = feedback_prompt(problem, verdict.feedback or "wrong", self._chat)
        else:
            prompt = self._chat.prompt_token_ids(problem.messages)
            if self._random.random() < item.corrupted:
                target = corrupt(problem.solution, self._random)
        return prompt, self._chat.completion_token_ids(target)


def corrupt(solution: str, generator: random.Random) -> str:
    """A plausible wrong answer: one digit or letter changed, two letters swapped, or one left out."""
    if solution.startswith("{"):
        return _corrupt_call(solution, generator)
    characters = list(solution)
    place = generator.randrange(len(characters))
    kind = generator.randrange(3)
    if kind == 0 and len(characters) > 1:
        other = (place + 1) % len(characters)
        characters[place], characters[other] = characters[other], characters[place]
    elif kind == 1 and len(characters) > 1:
        del characters[place]
    else:
        alphabet = "0123456789" if characters[place].isdigit() else "abcdefghijklmnopqrstuvwxyz"
        characters[place] = generator.choice(alphabet)
    wrong = "".join(characters)
    return wrong if wrong != solution else solution[:-1] + ("0" if solution[-1] != "0" else "1")


def _corrupt_call(solution: str, generator: random.Random) -> str:
    import json

    call = json.loads(solution)
    name = generator.choice(list(call["args"]))
    value = call["args"][name]
    call["args"][name] = (value + generator.randint(1, 9)) if isinstance(value, int) else value[::-1]
    kind = generator.randrange(3)
    if kind == 0:
        call["args"][name] = str(value) + ("x" if isinstance(value, str) else "")
    wrong = compact(call)
    return wrong[:-1] if kind == 1 else wrong
