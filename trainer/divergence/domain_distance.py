"""Maximum mean discrepancy between sets of embeddings: how far two domains' prompts are apart.

k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)); the estimator is the unbiased one of Gretton et al. (2012, eq. 3), which leaves out
the diagonal and may be below 0. Median heuristic: the bandwidth is the median distance between two different points of
everything that is compared; one bandwidth for all pairs of domains, or their distances would not compare.

Legend: N and M points, H dimensions; float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N, H], [M, H] -> [N, M]"""
    # about the common mean: of points far from 0 the products would cancel
    centre = first.mean(axis=0)
    first, second = first - centre, second - centre
    found = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2.0 * first @ second.T
    return np.maximum(found, 0.0)


def median_bandwidth(sets: Sequence[np.ndarray]) -> float:
    """Median distance between the pooled points, pair by pair; 0 where most of them are the same point."""
    points = np.concatenate([np.asarray(points, dtype=np.float64) for points in sets])
    distances = squared_distances(points, points)[np.triu_indices(len(points), k=1)]
    return float(np.sqrt(np.median(distances)))


def mmd_squared(first: np.ndarray, second: np.ndarray, *, bandwidth: float | None = None) -> float:
    """Unbiased MMD^2 of [N, H] and [M, H], N and M >= 2; the bandwidth is the median heuristic's unless given."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if min(len(first), len(second)) < 2:
        raise ValueError(f"the sets have {len(first)} and {len(second)} points; the unbiased estimator needs 2 or more of each")
    bandwidth = median_bandwidth([first, second]) if bandwidth is None else bandwidth
    if not bandwidth > 0.0:
        raise ValueError(f"bandwidth is {bandwidth}; it must be above 0 (the median heuristic gives 0 where most points are the same)")
    within = [_kernel(points, points, bandwidth) for points in (first, second)]
    off_diagonal = [(kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1)) for kernel in within]
    return float(sum(off_diagonal) - 2.0 * _kernel(first, second, bandwidth).mean())


def domain_distances(embeddings: Mapping[str, np.ndarray], *, bandwidth: float | None = None) -> dict[str, object]:
    """``{"bandwidth": ..., "mmd_squared": {first: {second: value}}}`` for all pairs, both ways round."""
    bandwidth = median_bandwidth(list(embeddings.values())) if bandwidth is None else bandwidth
    found: dict[str, dict[str, float]] = {name: {} for name in embeddings}
    for first, second in combinations(embeddings, 2):
        found[first][second] = found[second][first] = mmd_squared(embeddings[first], embeddings[second], bandwidth=bandwidth)
    return {"bandwidth": bandwidth, "mmd_squared": found}


def _kernel(first: np.ndarray, second: np.ndarray, bandwidth: float) -> np.ndarray:
    return np.exp(-squared_distances(first, second) / (2.0 * bandwidth**2))
