"""Advantages relative to the group of one problem (GRPO, 2402.03300, section 4.1.2; without scale: Dr. GRPO, 2503.20783)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

STD_EPSILON = 1e-6
"""Added to the standard deviation, so that a nearly equal group does not blow up."""


def group_advantages(scores: Sequence[float], spec: Any) -> list[float]:
    """(score - mean) / (std + 1e-6), or score - mean with ``spec.scale == "none"``; one float per score.

    The standard deviation is the sample's (n - 1). Equal scores give exactly 0.0 whatever they are; a group of one has
    mean 0 and standard deviation 1, so its advantage is its score.
    """
    if spec.baseline != "group_mean" or spec.scale not in ("group_std", "none"):
        raise ValueError(f"advantage baseline {spec.baseline!r}, scale {spec.scale!r}: allowed are group_mean and group_std or none")
    count = len(scores)
    if count <= 1:
        return [float(score) for score in scores]
    if all(score == scores[0] for score in scores):
        # the mean of equal floats may be off by a rounding error, which the scale would blow up
        return [0.0] * count
    mean = math.fsum(scores) / count
    centred = [score - mean for score in scores]
    if spec.scale == "none":
        return centred
    std = math.sqrt(math.fsum(value * value for value in centred) / (count - 1))
    return [value / (std + STD_EPSILON) for value in centred]
