"""pass@k from n samples of each problem, by the unbiased estimator of Chen et al. (2107.03374, eq. 1).

Of n samples c passed: 1 - C(n - c, k) / C(n, k), the probability that k of them drawn without replacement hold one that passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb

import numpy as np

from services.evaluation.resampling import percentile_estimate, resampled_means
from services.evaluation.retention import Estimate


def pass_at_k(passed: Sequence[int] | np.ndarray, num_samples: int, k: int) -> np.ndarray:
    """Per problem float64 [N], exact before it is rounded. ``passed`` int [N] counts of ``num_samples``."""
    counts = np.asarray(passed, dtype=np.int64)
    if not 1 <= k <= num_samples:
        raise ValueError(f"k is {k}; allowed is 1 to the {num_samples} samples of each problem")
    if counts.size == 0 or counts.min() < 0 or counts.max() > num_samples:
        raise ValueError(f"passed must hold counts from 0 to {num_samples} for one problem or more")
    table = np.array([float(1 - Fraction(comb(num_samples - c, k), comb(num_samples, k))) for c in range(num_samples + 1)])
    return table[counts]


def pass_at_k_estimate(passed: Sequence[int] | np.ndarray, num_samples: int, k: int) -> Estimate:
    """Mean over problems, with the bootstrap interval over problems."""
    values = pass_at_k(passed, num_samples, k)
    return percentile_estimate(values.mean(), resampled_means(values[None])[:, 0])
