"""From a level per step to one warning per episode: hysteresis in height and in time.

Raised after ``RAISE_STEPS`` steps in a row at level 1 or more; over after ``CLEAR_STEPS`` steps in a row below ``CLEAR_LEVEL``.
A step without a reading changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RAISE_STEPS = 3
CLEAR_STEPS = 10
CLEAR_LEVEL = 0.8


@dataclass(slots=True)
class Episode:
    """The state of one detector."""

    active: bool = False
    count: int = 0
    """Steps in a row that ask for the other state."""
    since: int | None = None
    """The step at which the running episode was raised."""

    def advance(self, level: float | None, step: int) -> Literal["raised", "cleared"] | None:
        if level is None:
            return None
        asks = level < CLEAR_LEVEL if self.active else level >= 1.0
        self.count = self.count + 1 if asks else 0
        if self.count < (CLEAR_STEPS if self.active else RAISE_STEPS):
            return None
        self.active, self.count = not self.active, 0
        self.since = step if self.active else None
        return "raised" if self.active else "cleared"
