"""Change in percent of the base, its gain and forgetting parts, and the mean over suites that no stage trained on.

relative[r, d] = 100 (R[r, d] - R[0, d]) / R[0, d]; gain = max(0, relative), forgetting = max(0, -relative). None where the base
scored 0: no percent of nothing. Intervals are bootstrap ones, paired by problem; a bound is None where more than the tail of
the resamples have a base of 0 (unbounded).

Invariant: gain - forgetting = relative, and at most one of both is above 0. Pure functions over rows of scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.evaluation.resampling import TAILS, percentile_estimate, resampled_means
from services.evaluation.retention import BOOTSTRAP_SEED, Estimate


@dataclass(frozen=True, slots=True)
class Percent:
    """A relative change; ``low`` or ``high`` is None where it is unbounded."""

    value: float
    low: float | None
    high: float | None

    def gain(self) -> Percent:
        return Percent(*(None if part is None else max(0.0, part) for part in (self.value, self.low, self.high)))

    def forgetting(self) -> Percent:
        return Percent(*(None if part is None else max(0.0, -part) for part in (self.value, self.high, self.low)))


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfDomain:
    """One row's mean over the suites that no stage trains on."""

    score: Estimate
    change_from_base: Estimate
    relative_percent: Percent | None
    """Mean of the suites' relative changes; None where the base scored 0 on one."""


def relative_changes(score_rows: Sequence[Mapping[str, Sequence[float]]]) -> list[dict[str, Percent | None]]:
    """Per row and domain, in percent of row 0 (whose own are 0)."""
    found: list[dict[str, Percent | None]] = [{} for _ in score_rows]
    for place, name in enumerate(score_rows[0]):
        series = np.stack([np.asarray(row[name], dtype=np.float64) for row in score_rows])
        means, draws = series.mean(axis=1), resampled_means(series, seed=BOOTSTRAP_SEED + place)
        for row, of_row in enumerate(found):
            of_row[name] = _percent(means[row : row + 1, None], means[:1, None], draws[:, row, None], draws[:, 0, None])
    return found


def out_of_domain(score_rows: Sequence[Mapping[str, Sequence[float]]], trained: Sequence[str]) -> list[OutOfDomain] | None:
    """Per row; None where every suite is trained on. ``trained``: all domains of all stages, also of those still to come."""
    names = [name for name in score_rows[0] if name not in set(trained)]
    if not names:
        return None
    means, draws = [], []
    for place, name in enumerate(names):
        series = np.stack([np.asarray(row[name], dtype=np.float64) for row in score_rows])
        means.append(series.mean(axis=1))
        draws.append(resampled_means(series, seed=BOOTSTRAP_SEED + place))
    of_row, drawn = np.stack(means, axis=1), np.stack(draws, axis=2)  # [rows, D], [B, rows, D]
    average, drawn_average = of_row.mean(axis=1), drawn.mean(axis=2)
    return [
        OutOfDomain(
            score=percentile_estimate(average[row], drawn_average[:, row]),
            change_from_base=percentile_estimate(average[row] - average[0], drawn_average[:, row] - drawn_average[:, 0]),
            relative_percent=_percent(of_row[row : row + 1], of_row[:1], drawn[:, row], drawn[:, 0]),
        )
        for row in range(len(score_rows))
    ]


def _percent(now: np.ndarray, base: np.ndarray, drawn_now: np.ndarray, drawn_base: np.ndarray) -> Percent | None:
    """Mean over D domains; now and base [1, D], draws [B, D]."""
    if (base == 0.0).any():
        return None
    value = float(_ratios(now, base)[0])
    # no interpolation: between a number and infinity there is nothing
    ordered = np.sort(_ratios(drawn_now, drawn_base))
    low, high = (float(ordered[round(tail / 100.0 * (len(ordered) - 1))]) for tail in TAILS)
    return Percent(value, low if np.isfinite(low) else None, high if np.isfinite(high) else None)


def _ratios(now: np.ndarray, base: np.ndarray) -> np.ndarray:
    """[B, D] -> [B]; something out of nothing is infinite, nothing out of nothing no change."""
    nothing = base == 0.0
    change = np.where(nothing, np.where(now > 0.0, np.inf, 0.0), (now - base) / np.where(nothing, 1.0, base))
    return 100.0 * change.mean(axis=1)
