"""A teacher in a Ray actor. Thin; the logic is the scorer's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.messages import TeacherRequest, TeacherScores
from services.teacher.canary import Follow
from services.teacher.scorer import Anchor, TeacherScorer


class TeacherActor:
    """Methods mirror the scorer's; Ray calls them one at a time."""

    def __init__(self, options: dict[str, Any]):
        self._scorer = TeacherScorer(**options)

    def begin_stage(self, teacher: Any, anchor: Anchor, snapshot: Path | None, update: int | None) -> Follow:
        return self._scorer.begin_stage(teacher, anchor=anchor, snapshot=snapshot, update=update)

    def follow(self, update: int, snapshot: Path) -> Follow:
        return self._scorer.follow(update, snapshot)

    def score(self, requests: Sequence[TeacherRequest], temperature: float, top_k: int, hidden: bool) -> list[TeacherScores]:
        return self._scorer.score(requests, temperature=temperature, top_k=top_k, hidden=hidden)

    def head(self) -> np.ndarray:
        return self._scorer.head()

    def save(self, folder: Path) -> None:
        self._scorer.save(folder)

    def load(self, folder: Path) -> Follow:
        return self._scorer.load(folder)

    def probe(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "teacher_version": self._scorer.teacher_version}
