"""One metric over a stage: where it started, where it is now, how much it jumps from step to step.

Invariants: medians only, so that a single wild step moves nothing; values that are not finite are not observed; the whole state
is JSON. Start: the first ``START_STEPS`` values seen in the stage. Now: the median of the last ``WINDOW`` values.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

START_STEPS = 10
WINDOW = 10
RESIDUALS = 40
MAD_TO_SIGMA = 1.4826
MEDIAN_ERROR = 1.2533 / math.sqrt(WINDOW)
"""Standard error of the median of ``WINDOW`` normal values, in standard deviations: sqrt(pi / 2 / n)."""


class Track:
    """The values of one metric."""

    def __init__(self) -> None:
        self._start: list[float] = []
        self._recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._residuals: deque[float] = deque(maxlen=RESIDUALS)
        self.count = 0
        """Values seen in the stage."""
        self.highest = -math.inf
        self.lowest = math.inf

    def observe(self, step: int, value: float) -> None:
        """``highest`` and ``lowest`` are those of the window's median, not of single values."""
        if not math.isfinite(value):
            return
        self.count += 1
        if len(self._recent) >= 3:
            self._residuals.append(abs(value - self.now))
        if len(self._start) < START_STEPS:
            self._start.append(value)
        self._recent.append((step, value))
        if len(self._recent) == WINDOW:
            now = self.now
            self.highest, self.lowest = max(self.highest, now), min(self.lowest, now)

    def is_ready(self, step: int) -> bool:
        """Whether there is a start, and at least half of the last ``WINDOW`` steps had a value."""
        current = sum(1 for seen, _ in self._recent if seen > step - WINDOW)
        return len(self._start) == START_STEPS and 2 * current >= WINDOW

    @property
    def start(self) -> float:
        return statistics.median(self._start)

    @property
    def now(self) -> float:
        return statistics.median(value for _, value in self._recent)

    @property
    def sigma(self) -> float:
        """Of single values around the window's median, from the median of their distances."""
        return MAD_TO_SIGMA * statistics.median(self._residuals) if self._residuals else 0.0

    @property
    def error(self) -> float:
        """Standard error of the difference of two windows' medians."""
        return math.sqrt(2.0) * MEDIAN_ERROR * self.sigma

    def state(self) -> dict[str, Any]:
        ends = [value if math.isfinite(value) else None for value in (self.highest, self.lowest)]
        return {
            "start": self._start,
            "recent": [list(pair) for pair in self._recent],
            "residuals": list(self._residuals),
            "ends": ends,
            "count": self.count,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Track:
        track = cls()
        track._start = list(state["start"])
        track._recent.extend((int(step), float(value)) for step, value in state["recent"])
        track._residuals.extend(state["residuals"])
        track.count = int(state.get("count", len(track._start)))  # states of before 2026-11-30 have none
        highest, lowest = state["ends"]
        track.highest = -math.inf if highest is None else highest
        track.lowest = math.inf if lowest is None else lowest
        return track
