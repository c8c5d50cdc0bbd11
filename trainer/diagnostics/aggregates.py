"""One figure for many matrices: median, mean, mean weighted by size, greatest; and pooled, for ratios of sums.

Invariant: matrices without the figure (None) do not count, and a group without any has None, never 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from trainer.diagnostics.matrix_drift import RATIOS, MatrixDrift, ratio
from trainer.diagnostics.pairing import KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Of one figure over one group of rows."""

    count: int
    median: float
    mean: float
    weighted: float
    """By the number of entries."""
    max: float
    pooled: float | None
    """The ratio of the sums, with vectors where they have the figure; None for figures that are no ratio of sums."""


def aggregates(rows: Sequence[MatrixDrift]) -> dict[str, dict[str, Aggregate]]:
    """group -> figure -> aggregate; groups are ``all`` and the kinds that occur."""
    groups = {"all": list(rows)} | {kind: [row for row in rows if row.kind == kind] for kind in KINDS}
    return {group: _figures(members) for group, members in groups.items() if members}


def _figures(rows: Sequence[MatrixDrift]) -> dict[str, Aggregate]:
    """A median over matrices would be one over norm scales if vectors had a vote: they have one among themselves alone."""
    voters = [row for row in rows if len(row.shape) > 1] or rows
    ratios = [(row.ratios(), row.counts.entries) for row in voters]
    pooled = _pooled(rows)
    found = {}
    for name in ratios[0][0]:
        values = [(value[name], size) for value, size in ratios if value[name] is not None]
        if values:
            found[name] = _aggregate(values, pooled.get(name))
    return found


def _aggregate(values: Iterable[tuple[float, int]], pooled: float | None) -> Aggregate:
    figures, sizes = zip(*values, strict=True)
    weighted = sum(value * size for value, size in zip(figures, sizes, strict=True)) / sum(sizes)
    return Aggregate(
        count=len(figures),
        median=float(statistics.median(figures)),
        mean=float(statistics.fmean(figures)),
        weighted=float(weighted),
        max=float(max(figures)),
        pooled=pooled,
    )


def _pooled(rows: Sequence[MatrixDrift]) -> dict[str, float | None]:
    totals: dict[str, float] = {}
    for row in rows:
        for name, value in row.sums().items():
            totals[name] = totals.get(name, 0) + value
    found = {name: ratio(totals.get(top), totals.get(bottom)) for name, (top, bottom) in RATIOS.items()}
    found["relative_l2"] = found["relative_l2"] ** 0.5 if found["relative_l2"] is not None else None
    return found


def as_dicts(groups: dict[str, dict[str, Aggregate]]) -> dict[str, dict[str, dict[str, float | None]]]:
    return {group: {name: asdict(value) for name, value in figures.items()} for group, figures in groups.items()}
