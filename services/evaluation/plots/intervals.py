"""A mean over seeds with its interval.

Invariant: negating every value negates mean and interval. Fewer than two values have no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from services.evaluation.retention import CONFIDENCE


def stratified_interval(groups: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The mean of the groups' means, so that a group with more values weighs no more; 95 % t interval by the variance within
    groups, pooled (degrees of freedom: values minus groups; None below one). With one group it is ``mean_interval``."""
    from scipy.stats import t

    known = [np.asarray(group, dtype=np.float64) for group in groups if len(group)]
    count, freedom = sum(map(len, known)), sum(len(group) - 1 for group in known)
    mean = float(np.mean([group.mean() for group in known])) if known else None
    if freedom < 1:
        return {"mean": mean, "low": None, "high": None, "n": count}
    variance = sum(float(((group - group.mean()) ** 2).sum()) for group in known) / freedom
    spread = np.sqrt(variance * sum(1.0 / len(group) for group in known)) / len(known)
    half = float(t.ppf(0.5 + CONFIDENCE / 2.0, freedom) * spread)
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": count}


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """``mean``, ``low``, ``high`` (95 % t interval; None below two values) and ``n``."""
    from scipy.stats import t

    known = np.asarray(values, dtype=np.float64)
    if len(known) < 2:
        return {"mean": float(known[0]) if len(known) else None, "low": None, "high": None, "n": len(known)}
    half = float(t.ppf(0.5 + CONFIDENCE / 2.0, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    mean = float(known.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(known)}
