"""What a domain is: a family of problems, their prompts, and a verifier that says in words what is wrong.

Invariant: ``problem(split, index)`` depends on the spec, the seed, the split and the index alone, and no problem of one
split is ever a problem of the other, whatever the seed: a problem's content decides its split.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Literal, Protocol

from cluster.messages import Problem, Verdict

Split = Literal["train", "evaluation"]
EVALUATION_ONE_IN = 5
"""About one content in five belongs to the evaluation split."""


class Domain(Protocol):
    """See the module docstring."""

    name: str

    def size(self, split: Split) -> int | None:
        """Number of problems, or None where they never end."""
        ...

    def problem(self, split: Split, index: int) -> Problem: ...

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        """Pure; runs in a worker process."""
        ...


def split_of(content: str) -> Split:
    """The split that a problem's content belongs to; the same for every seed, job and machine."""
    digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
    return "evaluation" if int.from_bytes(digest, "big") % EVALUATION_ONE_IN == 0 else "train"


class Drawn:
    """Draws distinct evaluation contents and independent training contents from a generator of contents.

    Training problems are drawn with replacement, each from its own seeded generator. Evaluation problems are drawn in
    order without replacement, until the domain is exhausted and repeats.
    """

    MAX_TRIES = 200

    def __init__(self, domain: str, seed: int, draw: Callable[[random.Random], str]):
        self._domain = domain
        self._seed = seed
        self._draw = draw
        self._evaluation: list[str] = []
        self._seen: set[str] = set()

    def content(self, split: Split, index: int) -> str:
        if index < 0:
            raise IndexError(f"problem index must not be negative, got {index}")
        if split == "train":
            return self._first(split, index)
        while len(self._evaluation) <= index:
            self._extend()
        return self._evaluation[index]

    def _first(self, split: Split, index: int) -> str:
        generator = random.Random(f"{self._domain}/{self._seed}/{split}/{index}")
        content = self._draw(generator)
        for _ in range(self.MAX_TRIES):
            if split_of(content) == split:
                break
            content = self._draw(generator)
        return content

    def _extend(self) -> None:
        generator = random.Random(f"{self._domain}/{self._seed}/evaluation-order/{len(self._evaluation)}")
        content = ""
        for _ in range(self.MAX_TRIES * EVALUATION_ONE_IN):
            content = self._draw(generator)
            if split_of(content) == "evaluation" and content not in self._seen:
                break
        else:
            content = self._evaluation[len(self._evaluation) % max(len(self._seen), 1)] if self._evaluation else content
        self._seen.add(content)
        self._evaluation.append(content)


def passed() -> Verdict:
    return Verdict(score=1.0, passed=True)


def failed(feedback: str, **details: object) -> Verdict:
    return Verdict(score=0.0, passed=False, feedback=feedback, details=dict(details))
