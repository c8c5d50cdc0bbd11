"""Bootstrap means over problems, many series at once.

Invariant: a draw is a multiset of problems, the same one for every series of a domain, so whatever is formed of the means of
one draw is paired. Legend: B resamples, N problems, S series.
"""

from __future__ import annotations

import numpy as np

from services.evaluation.retention import BOOTSTRAP_SEED, CONFIDENCE, NUM_RESAMPLES, Estimate

DRAWS_AT_ONCE = 1 << 20
"""Entries of one block of counts: 8 MiB."""
TAILS = (50.0 * (1.0 - CONFIDENCE), 50.0 * (1.0 + CONFIDENCE))


def resampled_means(series: np.ndarray, *, resamples: int = NUM_RESAMPLES, seed: int = BOOTSTRAP_SEED) -> np.ndarray:
    """``series`` float64 [S, N] -> [B, S]: means over N problems drawn with replacement."""
    num_problems = series.shape[1]
    generator = np.random.default_rng(seed)
    share = np.full(num_problems, 1.0 / num_problems)
    block = max(1, DRAWS_AT_ONCE // num_problems)
    parts = []
    for start in range(0, resamples, block):
        counts = generator.multinomial(num_problems, share, size=min(block, resamples - start))
        parts.append(counts.astype(np.float64) @ series.T / num_problems)
    return np.concatenate(parts)


def percentile_estimate(value: float, draws: np.ndarray) -> Estimate:
    """The value and the percentile interval of its draws [B]."""
    low, high = np.percentile(draws, TAILS)
    return Estimate(float(value), float(low), float(high))
