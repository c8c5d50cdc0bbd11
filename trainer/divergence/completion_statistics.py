"""Lengths and variety of completions, from their token ids alone.

distinct-n (Li et al., 1510.03055): different n-grams over all n-grams of the set. It falls with the size of the set, so it
compares sets of equal size only; no n-gram spans two completions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ORDERS = (1, 2, 3, 4)


def distinct_n(completions: Sequence[np.ndarray], n: int) -> float | None:
    """0 to 1; None where no completion has ``n`` tokens."""
    grams = [tuple(ids[start : start + n]) for ids in map(lambda ids: np.asarray(ids).tolist(), completions) for start in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def completion_statistics(completions: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Lengths in tokens and distinct-n, as flat JSON values."""
    lengths = np.array([len(ids) for ids in completions], dtype=np.float64)
    found: dict[str, float | None] = {"num_completions": float(len(lengths)), "mean_tokens": float(lengths.mean())}
    found |= {f"p{share}_tokens": float(np.percentile(lengths, share)) for share in (50, 95)}
    return found | {f"distinct_{n}": distinct_n(completions, n) for n in ORDERS}
