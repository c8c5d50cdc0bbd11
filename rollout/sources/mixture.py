"""Deals the problem slots of a stage to its domains."""

from __future__ import annotations

from collections.abc import Sequence


class Mixture:
    """Every slot goes to the domain that is furthest behind its share.

    No domain is ever a whole slot ahead of its exact share, and the indices of a domain are dealt without a gap.
    Scans forward from where it was last; a slot before that starts the scan anew.
    """

    def __init__(self, weights: Sequence[float]):
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self._restart()

    def _restart(self) -> None:
        self._next = 0
        self._dealt = [0] * len(self._shares)

    def slots(self, first: int, count: int) -> list[tuple[int, int]]:
        """(domain, index within the domain) of slots ``first`` to ``first + count - 1``."""
        if first < self._next:
            self._restart()
        while self._next < first:
            self._deal()
        return [self._deal() for _ in range(count)]

    def _deal(self) -> tuple[int, int]:
        self._next += 1
        behind = [share * self._next - dealt for share, dealt in zip(self._shares, self._dealt, strict=True)]
        which = behind.index(max(behind))
        self._dealt[which] += 1
        return which, self._dealt[which] - 1
