"""A teacher in a Ray actor. Thin; the logic is the scorer's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.messages import TeacherRequest, TeacherScores

if TYPE_CHECKING:
    from services.teacher.canary import Follow


class TeacherActor:
    """Methods mirror the scorer's; Ray calls them one at a time."""

    def __init__(self, options: dict[str, Any]):
        # here and not above: the driver names this class and needs none of the libraries, which cost it seconds
        from services.teacher.scorer import TeacherScorer

        self._scorer = TeacherScorer(**options)

    def begin_stage(self, teacher: Any, options: dict[str, Any]) -> Follow:
        return self._scorer.begin_stage(teacher, **options)

    def follow(self, update: int, snapshot: Path, options: dict[str, Any]) -> Follow:
        return self._scorer.follow(update, snapshot, **options)

    def begin_reference(self, options: dict[str, Any]) -> Follow:
        return self._scorer.begin_reference(**options)

    def score(self, requests: Sequence[TeacherRequest], options: dict[str, Any]) -> list[TeacherScores]:
        return self._scorer.score(requests, **options)

    def reference_logprobs(self, requests: Sequence[TeacherRequest], options: dict[str, Any]) -> list[TeacherScores]:
        return self._scorer.reference_logprobs(requests, **options)

    def head(self) -> np.ndarray:
        return self._scorer.head()

    def full_payload(self, num_tokens: int) -> str:
        return self._scorer.full_payload(num_tokens)

    def save(self, folder: Path) -> None:
        self._scorer.save(folder)

    def load(self, folder: Path) -> Follow:
        return self._scorer.load(folder)

    def probe(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "teacher_version": self._scorer.teacher_version}
