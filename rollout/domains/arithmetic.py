"""Sums, differences and products of two numbers, answered with the number alone."""

from __future__ import annotations

import random
import re

from cluster.messages import Problem, Verdict
from cluster.spec.domains import ArithmeticDomain
from rollout.domains.base import Procedural, Split, failed, passed

OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,19})")
"""One number, written the only way: no sign but a minus, no leading zeros."""


class Arithmetic(Procedural):
    """``37+58=?`` -> ``95``"""

    def __init__(self, spec: ArithmeticDomain, name: str, seed: int):
        super().__init__(spec, name, seed, family="arithmetic")

    def _draw(self, generator: random.Random) -> str:
        top = 10**self._spec.digits - 1
        operation = generator.choice(self._spec.operations)
        return f"{generator.randint(0, top)}{operation}{generator.randint(0, top)}"

    def problem(self, split: Split, index: int) -> Problem:
        content = self._drawn.content(split, index)
        left, operation, right = re.fullmatch(r"([0-9]+)([-+*])([0-9]+)", content).groups()
        answer = OPERATIONS[operation](int(left), int(right))
        return Problem(
            problem_id=f"{self.name}/{split}/{index}",
            domain=self.name,
            messages=({"role": "user", "content": f"{content}=?"},),
            solution=str(answer),
            answer=answer,
        )

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        text = completion_text.strip()
        if not NUMBER.fullmatch(text):
            return failed("not a number")
        given = int(text)
        if given == problem.answer:
            return passed()
        return failed("too small" if given < problem.answer else "too large", given=given)
