"""A mean over seeds with its interval.

Invariant: negating every value negates mean and interval. Fewer than two values have no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from services.evaluation.retention import CONFIDENCE


def mean_interval(values: Sequence[float]) -> dict[str, Any]:
    """``mean``, ``low``, ``high`` (95 % t interval; None below two values) and ``n``."""
    from scipy.stats import t

    known = np.asarray(values, dtype=np.float64)
    if len(known) < 2:
        return {"mean": float(known[0]) if len(known) else None, "low": None, "high": None, "n": len(known)}
    half = float(t.ppf(0.5 + CONFIDENCE / 2.0, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    mean = float(known.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": len(known)}
