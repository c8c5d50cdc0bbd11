"""Which items (n-grams of token ids, format pieces) are far more frequent now than at the base and in the domain's own solutions.

Log-odds with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008): for item w with counts y1 of n1 now and y0 of n0
at the base, and prior a_w = A (y1 + y0) / (n1 + n0),

    delta = ln((y1 + a_w) / (n1 + A - y1 - a_w)) - ln((y0 + a_w) / (n0 + A - y0 - a_w)),   var = 1/(y1 + a_w) + 1/(y0 + a_w).

An item counts at most once in a completion towards y, and n counts completions: tokens of one completion are not independent,
and what amplifies is what more completions do. Counts of now fade with ``FADE`` a step. Repetition inside one completion is
``repetition.py``'s.

The same comparison is made with the domain's solutions where there are any, and the weaker of the two counts: a policy that learns
to answer as it should writes what right answers hold, and writes it more often than the base, which was not always right.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

FADE = 0.9
"""A step's weight ten steps later is 0.35; all steps together weigh as much as ten."""
PRIOR = 20.0
"""A, in completions."""
MIN_SHARE = 0.05
"""Of the completions now that an amplified item must be in."""
MIN_SOLUTIONS = 64
"""Fewer are not compared with: against them the prior keeps every lift below the detectors' threshold, so nothing would be seen."""
MAX_REFERENCE_ITEMS = 20_000
SMALLEST_WEIGHT = 0.5
"""Faded counts below this are forgotten."""


@dataclass(frozen=True, slots=True)
class Amplified:
    """An item that is more frequent than at the base."""

    item: str
    share_now: float
    share_base: float
    lift: float
    """Share now over share at the base, both with the prior: the size of the effect (an item of all completions has 1). Over the
    share in the solutions where that is less."""
    log_odds: float
    """Against the base or against the solutions, the smaller; so is ``z``."""
    z: float
    """log_odds in standard errors: whether it can be chance."""
    share_solutions: float | None = None
    """None where the domain has no solutions to compare with."""


class Reference:
    """In how many completions each item is."""

    def __init__(self, counts: Mapping[str, int] | None = None, completions: float = 0.0):
        self.counts: Counter[str] = Counter(counts or {})
        self.completions = float(completions)

    def add(self, items_of_completions: Iterable[set[str]]) -> None:
        for items in items_of_completions:
            self.counts.update(items)
            self.completions += 1

    def freeze(self) -> None:
        """Forget all but the most frequent items; a forgotten one counts as not seen."""
        if len(self.counts) > MAX_REFERENCE_ITEMS:
            self.counts = Counter(dict(self.counts.most_common(MAX_REFERENCE_ITEMS)))

    def share(self, item: str) -> float:
        return self.counts.get(item, 0) / self.completions

    def against(self, item: str, y1: float, n1: float) -> tuple[float, float, float]:
        """(lift, log-odds, z) of an item that is in ``y1`` of ``n1`` completions now."""
        y0, n0 = float(self.counts.get(item, 0)), self.completions
        prior = PRIOR * (y1 + y0) / (n1 + n0)
        delta = _log_odds(y1 + prior, n1 + PRIOR) - _log_odds(y0 + prior, n0 + PRIOR)
        lift = (y1 + prior) / (n1 + PRIOR) / ((y0 + prior) / (n0 + PRIOR))
        return lift, delta, delta / math.sqrt(1.0 / (y1 + prior) + 1.0 / (y0 + prior))


class Amplification:
    """Counts at the base, in the domain's solutions and now. Items are text; the ``base`` may be handed in, else it is the first
    steps of the stage; with fewer than ``MIN_SOLUTIONS`` solutions the base alone is compared with."""

    def __init__(self) -> None:
        self.base, self.solutions = Reference(), Reference()
        self._now: dict[str, float] = {}
        self._now_completions = 0.0

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
        if self._now_completions <= 0 or self.base.completions <= 0:
            return []
        least = MIN_SHARE * self._now_completions
        found = [self._compare(item, weight) for item, weight in self._now.items() if weight >= least]
        return sorted((one for one in found if one.lift > 1.0), key=lambda one: -one.lift)[:most]

    def _compare(self, item: str, weight: float) -> Amplified:
        has_solutions = self.solutions.completions >= MIN_SOLUTIONS
        references = [self.base, self.solutions] if has_solutions else [self.base]
        lift, log_odds, z = (min(found) for found in zip(*(one.against(item, weight, self._now_completions) for one in references), strict=True))
        in_solutions = self.solutions.share(item) if has_solutions else None
        return Amplified(item, weight / self._now_completions, self.base.share(item), lift, log_odds, z, in_solutions)

    def state(self) -> dict[str, Any]:
        return {
            "base": dict(self.base.counts),
            "base_completions": self.base.completions,
            "solutions": dict(self.solutions.counts),
            "solutions_completions": self.solutions.completions,
            "now": self._now,
            "now_completions": self._now_completions,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Amplification:
        """A state that an older version wrote has no solutions."""
        counts = cls()
        counts.base = Reference(state["base"], state["base_completions"])
        counts.solutions = Reference(state.get("solutions"), state.get("solutions_completions", 0.0))
        counts._now, counts._now_completions = dict(state["now"]), float(state["now_completions"])
        return counts


def _log_odds(count: float, total: float) -> float:
    # an item in every completion: half a completion without it keeps the odds finite
    return math.log(count / max(total - count, 0.5))
