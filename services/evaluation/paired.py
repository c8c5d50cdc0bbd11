"""Is a row better than another on the same problems? Paired differences with interval and p-value.

Two-sided p-values of "no difference". Scores that are all 0 or 1: exact McNemar (binomial test on the problems that changed).
Others: sign-flip permutation of the paired differences, all 2^N of them where that is at most NUM_PERMUTATIONS, else that many
drawn ones, (1 + as extreme) / (1 + drawn). Intervals are paired bootstrap ones.

Invariant: swapping the rows negates difference and interval and keeps the p-value. Legend: N problems, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.evaluation.resampling import percentile_estimate, resampled_means
from services.evaluation.retention import BOOTSTRAP_SEED, Estimate, EvaluationError

NUM_PERMUTATIONS = 9999
Pair = tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]
"""Scores of the earlier row and of the later one."""
TOLERANCE = 1e-9
"""Relative: sums that are equal but for rounding count as equally extreme."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """``later`` minus ``earlier``."""

    difference: Estimate
    p_value: float
    method: str
    """``mcnemar_exact``, ``sign_flip_exact`` or ``sign_flip_sampled``"""
    num_gained: int
    """Problems on which the later row is better."""
    num_lost: int


def paired_test(earlier: Sequence[float] | np.ndarray, later: Sequence[float] | np.ndarray) -> PairedTest:
    """Of two rows of one domain, both float [N] over the same problems."""
    return paired_tests([(earlier, later)])[0]


def paired_tests(pairs: Sequence[Pair]) -> list[PairedTest]:
    """Of pairs over the same N problems; resamples and sign flips are shared between them."""
    _hold_to_equal_lengths(pairs)
    earlier, later = (np.stack([np.asarray(pair[side], dtype=np.float64) for pair in pairs]) for side in (0, 1))
    differences = later - earlier
    if not np.isfinite(differences).all():
        raise EvaluationError("paired rows have scores that are not finite")
    binary = [bool(np.isin(both, (0.0, 1.0)).all()) for both in zip(earlier, later, strict=True)]
    others = [index for index, is_binary in enumerate(binary) if not is_binary]
    flipped = dict(zip(others, _sign_flip(differences[others]), strict=True)) if others else {}
    draws = resampled_means(differences)
    found = []
    for index, difference in enumerate(differences):
        gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
        p_value, method = flipped[index] if index in flipped else (mcnemar(gained, lost), "mcnemar_exact")
        estimate = percentile_estimate(difference.mean(), draws[:, index])
        found.append(PairedTest(difference=estimate, p_value=p_value, method=method, num_gained=gained, num_lost=lost))
    return found


def mcnemar(gained: int, lost: int) -> float:
    """Exact and two-sided; 1 where no problem changed."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values that are looked at together, in their order."""
    order, adjusted, largest = np.argsort(p_values, kind="stable"), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _hold_to_equal_lengths(pairs: Sequence[Pair]) -> None:
    lengths = {len(row) for pair in pairs for row in pair}
    if len(lengths) != 1 or 0 in lengths:
        raise EvaluationError(f"paired rows must have scores of the same problems, one or more; they have {sorted(lengths)}")


def _sign_flip(differences: np.ndarray) -> list[tuple[float, str]]:
    """[P, N] -> p-value and method of each pair."""
    num_problems = differences.shape[1]
    exact = 2**num_problems <= NUM_PERMUTATIONS
    if exact:
        patterns = np.arange(2**num_problems)[:, None] >> np.arange(num_problems) & 1
    else:
        patterns = np.random.default_rng(BOOTSTRAP_SEED).integers(0, 2, size=(NUM_PERMUTATIONS, num_problems), dtype=np.int8)
    sums = np.abs((2.0 * patterns - 1.0) @ differences.T)  # [patterns, P]
    seen = np.abs(differences.sum(axis=1)) - TOLERANCE * np.abs(differences).sum(axis=1)
    extreme = (sums >= seen).sum(axis=0)
    if exact:
        return [(float(count / len(patterns)), "sign_flip_exact") for count in extreme]
    return [(float((1 + count) / (1 + len(patterns))), "sign_flip_sampled") for count in extreme]
