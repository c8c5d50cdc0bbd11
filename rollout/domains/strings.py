"""One operation on a random lower-case string, answered with the resulting string."""

from __future__ import annotations

import random
import string
from collections import Counter

from cluster.messages import Problem, Verdict
from cluster.spec.domains import StringsDomain
from rollout.domains.base import Drawn, Split, failed, passed

OPERATIONS = {
    "reverse": lambda text: text[::-1],
    "sort": lambda text: "".join(sorted(text)),
    "uppercase": str.upper,
    "dedupe": lambda text: "".join(dict.fromkeys(text)),
}


class Strings:
    """``sort: dbca`` -> ``abcd``"""

    def __init__(self, spec: StringsDomain, name: str, seed: int):
        self.name = name
        self._spec = spec
        self._drawn = Drawn(f"strings-{spec.operation}", seed, self._draw)

    def size(self, split: Split) -> int | None:
        return None

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
        missing = Counter(problem.answer) - Counter(text)
        extra = Counter(text) - Counter(problem.answer)
        said = []
        if missing:
            said.append("missing: " + "".join(sorted(missing.elements()))[:8])
        if extra:
            said.append("extra: " + "".join(sorted(extra.elements()))[:8])
        return failed(", ".join(said) or "wrong order")
