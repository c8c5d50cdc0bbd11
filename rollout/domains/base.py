"""What a domain is: a family of problems, their prompts, and a verifier that says in words what is wrong.

Invariant: ``problem(split, index)`` depends on the spec, the seed, the split and the index alone, and no problem of one
split is ever a problem of the other, whatever the seed: a problem's content decides its split.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Any, Literal, Protocol

from cluster.errors import StageError
from cluster.messages import Problem, Verdict

Split = Literal["train", "evaluation"]
EVALUATION_ONE_IN = 5
"""About one content in five belongs to the evaluation split."""
MAX_TRIES = 1000
"""Draws without a content of the wanted split before the split counts as exhausted."""


class Domain(Protocol):
    """See the module docstring. Constructed as ``(spec, name, seed)``; cheap to construct and to pickle."""

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
    """Contents of a procedural domain: a generator of random contents, split, seeded and indexed.

    Training contents are drawn with replacement, each index from its own seeded generator. Evaluation contents are drawn
    in order without replacement; when all have been drawn they repeat in the same order.
    """

    def __init__(self, domain: str, seed: int, draw: Callable[[random.Random], str]):
        self._domain = domain
        self._seed = seed
        self._draw = draw
        self._forget()

    def _forget(self) -> None:
        self._evaluation: list[str] = []
        self._seen: set[str] = set()
        self._exhausted = False

    def __getstate__(self) -> dict[str, Any]:
        """What was drawn stays here: a verifier process does not need it."""
        return {"_domain": self._domain, "_seed": self._seed, "_draw": self._draw}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def content(self, split: Split, index: int) -> str:
        """Raises ``IndexError`` for a negative index, ``StageError`` (no_problems) where the split has no content at all."""
        if index < 0:
            raise IndexError(f"problem index must not be negative, got {index}")
        if split == "train":
            return self._training(index)
        while len(self._evaluation) <= index and not self._exhausted:
            self._extend()
        return self._evaluation[index % len(self._evaluation)]

    def _training(self, index: int) -> str:
        generator = random.Random(f"{self._domain}/{self._seed}/train/{index}")
        for _ in range(MAX_TRIES):
            content = self._draw(generator)
            if split_of(content) == "train":
                return content
        raise self._no_problems("train")

    def _extend(self) -> None:
        generator = random.Random(f"{self._domain}/{self._seed}/evaluation/{len(self._evaluation)}")
        for _ in range(MAX_TRIES):
            content = self._draw(generator)
            if split_of(content) == "evaluation" and content not in self._seen:
                self._seen.add(content)
                self._evaluation.append(content)
                return
        if not self._evaluation:
            raise self._no_problems("evaluation")
        self._exhausted = True

    def _no_problems(self, split: Split) -> StageError:
        return StageError(f"domain {self._domain!r} is too small: its {split} split has no problem", reason="no_problems")


class Procedural:
    """What the procedural domains share. Only the spec, the name and the seed travel to a verifier's process."""

    def __init__(self, spec: Any, name: str, seed: int, *, family: str):
        self.name = name
        self._spec = spec
        self._seed = seed
        self._drawn = Drawn(family, seed, self._draw)

    def _draw(self, generator: random.Random) -> str:
        """The content of one problem."""
        raise AssertionError(f"{type(self).__name__} draws nothing")

    def size(self, split: Split) -> int | None:
        return None

    def __reduce__(self) -> tuple[type, tuple[Any, str, int]]:
        return type(self), (self._spec, self.name, self._seed)


def passed() -> Verdict:
    return Verdict(score=1.0, passed=True)


def failed(feedback: str, **details: object) -> Verdict:
    return Verdict(score=0.0, passed=False, feedback=feedback, details=dict(details))
