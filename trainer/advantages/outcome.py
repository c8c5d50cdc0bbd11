"""One advantage per completion from the scores of a batch: score - baseline, over a scale.

GRPO (2402.03300, section 4.1.2) is group_mean and group_std; without scale Dr. GRPO (2503.20783); leave_one_out is RLOO
(2402.14740); batch_std divides by one number for the whole batch. Invariant: with a baseline, equal scores of a group give
exactly 0.0, whatever they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

STD_EPSILON = 1e-6
"""Added to the standard deviation, so that a nearly equal group does not blow up."""

Scores = Sequence[float]


def outcome_advantages(groups: Sequence[Scores], spec: Any) -> list[list[float]]:
    """Per group the advantages of its scores. Standard deviations are of samples (n - 1).

    A group of one has baseline 0 and a scale by its group of 1, so its advantage is its score.
    """
    baseline, scale = _look_up(BASELINES, "baseline", spec.baseline), _look_up(SCALES, "scale", spec.scale)
    centred = [baseline(list(scores)) for scores in groups]
    return [[value / divisor for value in values] for values, divisor in zip(centred, scale(centred), strict=True)]


def _look_up(table: dict[str, Callable], field: str, name: str) -> Callable:
    if name not in table:
        raise ValueError(f"advantage {field} {name!r} is unknown; allowed are {sorted(table)}")
    return table[name]


def _minus_mean(scores: list[float]) -> list[float]:
    if len(scores) <= 1:
        return scores
    if _are_equal(scores):
        # the mean of equal floats may be off by a rounding error, which the scale would blow up
        return [0.0] * len(scores)
    mean = math.fsum(scores) / len(scores)
    return [score - mean for score in scores]


def _minus_others(scores: list[float]) -> list[float]:
    """score - mean of the others = n / (n - 1) x (score - mean)."""
    if len(scores) <= 1:
        return scores
    return [value * len(scores) / (len(scores) - 1) for value in _minus_mean(scores)]


def _by_group(groups: list[list[float]]) -> list[float]:
    return [_divisor(values) for values in groups]


def _by_batch(groups: list[list[float]]) -> list[float]:
    return [_divisor([value for values in groups for value in values])] * len(groups)


def _divisor(values: list[float]) -> float:
    """Standard deviation + 1e-6; 1 where there is no spread to speak of."""
    if len(values) <= 1 or _are_equal(values):
        return 1.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)) + STD_EPSILON


def _are_equal(values: list[float]) -> bool:
    return all(value == values[0] for value in values)


BASELINES: dict[str, Callable[[list[float]], list[float]]] = {
    "group_mean": _minus_mean,
    "leave_one_out": _minus_others,
    "none": lambda scores: scores,
}
SCALES: dict[str, Callable[[list[list[float]]], list[float]]] = {
    "group_std": _by_group,
    "batch_std": _by_batch,
    "none": lambda groups: [1.0] * len(groups),
}
