"""Which items (n-grams of token ids, format pieces) are far more frequent now than they were at the base, and by how much.

Log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008): for item w with counts y1 of n1 now and y0 of n0
at the base, and prior a_w = A (y1 + y0) / (n1 + n0),

    delta = ln((y1 + a_w) / (n1 + A - y1 - a_w)) - ln((y0 + a_w) / (n0 + A - y0 - a_w)),   var = 1/(y1 + a_w) + 1/(y0 + a_w).

An item counts at most once in a completion towards y, and n counts completions: tokens of one completion are not independent,
and what amplifies is what more completions do. Counts of now fade with ``FADE`` a step. Repetition inside one completion is
``repetition.py``'s.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

FADE = 0.9
"""A step's weight ten steps later is 0.35; all steps together weigh as much as ten."""
PRIOR = 20.0
"""A, in completions."""
MIN_SHARE = 0.05
"""Of the completions now that an amplified item must be in."""
MAX_BASE_ITEMS = 20_000
SMALLEST_WEIGHT = 0.5
"""Faded counts below this are forgotten."""


@dataclass(frozen=True, slots=True)
class Amplified:
    """An item that is more frequent than at the base."""

    item: str
    share_now: float
    share_base: float
    lift: float
    """Share now over share at the base, both with the prior: the size of the effect (an item of all completions has 1)."""
    log_odds: float
    z: float
    """log_odds in standard errors: whether it can be chance."""


class Amplification:
    """Counts at the base and now. Items are text; ``base`` may be handed in, else it is the first steps of the stage."""

    def __init__(self) -> None:
        self.base: Counter[str] = Counter()
        self.base_completions = 0.0
        self._now: dict[str, float] = {}
        self._now_completions = 0.0

    def add_base(self, items_of_completions: Iterable[set[str]]) -> None:
        for items in items_of_completions:
            self.base.update(items)
            self.base_completions += 1

    def freeze_base(self) -> None:
        """Forget all but the most frequent items; a forgotten one counts as not seen."""
        if len(self.base) > MAX_BASE_ITEMS:
            self.base = Counter(dict(self.base.most_common(MAX_BASE_ITEMS)))

    def add(self, items_of_completions: Iterable[set[str]]) -> None:
        """One step's completions."""
        now = {item: faded for item, weight in self._now.items() if (faded := weight * FADE) >= SMALLEST_WEIGHT}
        self._now_completions *= FADE
        for items in items_of_completions:
            self._now_completions += 1
            for item in items:
                now[item] = now.get(item, 0.0) + 1.0
        self._now = now

    def amplified(self, *, most: int = 5) -> list[Amplified]:
        """Items in at least ``MIN_SHARE`` of the completions now, the greatest lift first."""
        n1, n0 = self._now_completions, self.base_completions
        if n1 <= 0 or n0 <= 0:
            return []
        least = MIN_SHARE * n1
        found = [self._compare(item, y1, n1, n0) for item, y1 in self._now.items() if y1 >= least]
        return sorted((one for one in found if one.lift > 1.0), key=lambda one: -one.lift)[:most]

    def _compare(self, item: str, y1: float, n1: float, n0: float) -> Amplified:
        y0 = float(self.base.get(item, 0))
        prior = PRIOR * (y1 + y0) / (n1 + n0)
        delta = _log_odds(y1 + prior, n1 + PRIOR) - _log_odds(y0 + prior, n0 + PRIOR)
        z = delta / math.sqrt(1.0 / (y1 + prior) + 1.0 / (y0 + prior))
        lift = (y1 + prior) / (n1 + PRIOR) / ((y0 + prior) / (n0 + PRIOR))
        return Amplified(item, y1 / n1, y0 / n0, lift, delta, z)

    def state(self) -> dict[str, Any]:
        return {
            "base": dict(self.base),
            "base_completions": self.base_completions,
            "now": self._now,
            "now_completions": self._now_completions,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Amplification:
        counts = cls()
        counts.base, counts.base_completions = Counter(state["base"]), float(state["base_completions"])
        counts._now, counts._now_completions = dict(state["now"]), float(state["now_completions"])
        return counts


def _log_odds(count: float, total: float) -> float:
    # an item in every completion: half a completion without it keeps the odds finite
    return math.log(count / max(total - count, 0.5))
