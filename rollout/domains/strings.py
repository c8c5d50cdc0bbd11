"""One operation on a random lower-case string, answered with the resulting string."""

from __future__ import annotations

import random
import string
from collections import Counter

from cluster.messages import Problem, Verdict
from cluster.spec.domains import StringsDomain
from rollout.domains.base import Procedural, Split, failed, passed

OPERATIONS = {
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "rotate": lambda text: text[1:] + text[:1],
    "swap": lambda text: "".join(text[start : start + 2][::-1] for start in range(0, len(text), 2)),
    "uppercase": str.upper,
    "dedupe": lambda text: "".join(dict.fromkeys(text)),
}
NAMED_LETTERS = 6
"""Feedback names at most so many letters of a kind: it is read by models with short contexts."""


class Strings(Procedural):
    """``sort: dbca`` -> ``abcd``"""

    def __init__(self, spec: StringsDomain, name: str, seed: int):
        super().__init__(spec, name, seed, family=f"strings-{spec.operation}")

    def _draw(self, generator: random.Random) -> str:
        length = generator.randint(*self._spec.length)
        return "".join(generator.choices(string.ascii_lowercase, k=length))

    def problem(self, split: Split, index: int) -> Problem:
        content = self._drawn.content(split, index)
        answer = OPERATIONS[self._spec.operation](content)
        return Problem(
            problem_id=f"{self.name}/{split}/{index}",
            domain=self.name,
            messages=({"role": "user", "content": f"{self._spec.operation}: {content}"},),
            solution=answer,
            answer=answer,
        )

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        text = completion_text.strip()
        if text == problem.answer:
            return passed()
        return failed(_difference(problem.answer, text))


def _difference(wanted: str, given: str) -> str:
    """``missing: ab, extra: c``, or ``wrong order`` where the letters are right."""
    said = []
    for word, letters in (("missing", Counter(wanted) - Counter(given)), ("extra", Counter(given) - Counter(wanted))):
        if letters:
            said.append(f"{word}: " + "".join(sorted(letters.elements()))[:NAMED_LETTERS])
    return ", ".join(said) or "wrong order"
