"""Maximum mean discrepancy between sets of embeddings: how far two domains' prompts are apart.

k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)); the estimator is the unbiased one of Gretton et al. (2012, eq. 3), which leaves out
the diagonal and may be below 0. Median heuristic: the bandwidth is the median distance between two different points of
everything that is compared; one bandwidth for all pairs of domains, or their distances would not compare.

Invariant: a domain that can have no distance is named with a reason, and the others have theirs. Points that rounding alone tells
apart are the same point: else the distances between equal prompts would be the bandwidth, and every distance noise.

Legend: N and M points, H dimensions; float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

ROUNDING = 1e-12
"""Of the squared lengths: what a difference of equal points leaves in float64 at some thousand dimensions."""


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N, H], [M, H] -> [N, M]"""
    # about the common mean: of points far from 0 the products would cancel
    centre = first.mean(axis=0)
    first, second = first - centre, second - centre
    lengths = (first**2).sum(1)[:, None] + (second**2).sum(1)[None]
    found = lengths - 2.0 * first @ second.T
    found[found <= ROUNDING * lengths] = 0.0
    return found


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
    """``{"bandwidth": ..., "mmd_squared": {first: {second: value}}, "notes": [...]}`` for all pairs, both ways round.

    ``notes`` say which domains have no distance, and why; without two that have one the bandwidth is None.
    """
    reasons = {name: reason for name, points in embeddings.items() if (reason := _unfit(points)) is not None}
    kept = {name: points for name, points in embeddings.items() if name not in reasons}
    if bandwidth is None:
        bandwidth = _common_bandwidth(kept, reasons)
    found: dict[str, dict[str, float]] = {name: {} for name in embeddings}
    for first, second in combinations(kept, 2):
        found[first][second] = found[second][first] = mmd_squared(kept[first], kept[second], bandwidth=bandwidth)
    notes = [f"{name!r} has no distance from the other domains: {reason}" for name, reason in reasons.items()]
    return {"bandwidth": bandwidth, "mmd_squared": found, "notes": notes}


def _unfit(points: np.ndarray) -> str | None:
    """Why a domain has no distance from any other; None where it may have one."""
    if len(points) < 2:
        return f"too_few_prompts, it has {len(points)} and the estimator needs 2 or more"
    broken = int((~np.isfinite(points)).any(axis=1).sum())
    return f"not_finite, {broken} of its {len(points)} prompts have embeddings that are not finite" if broken else None


def _common_bandwidth(kept: dict[str, np.ndarray], reasons: dict[str, str]) -> float | None:
    """Of all that are kept. Where most points are the same it would be 0: then the domain that has the most of them goes."""
    while len(kept) > 1:
        bandwidth = median_bandwidth(list(kept.values()))
        if bandwidth > 0.0:
            return bandwidth
        shares = {name: _same_share(points) for name, points in kept.items()}
        most = max(shares, key=lambda name: shares[name])
        reasons[most] = f"prompts_alike, {shares[most]:.0%} of its pairs of prompts are the same, with which the kernel's bandwidth is 0"
        del kept[most]
    return None


def _same_share(points: np.ndarray) -> float:
    """Of the pairs of points, how many are the same point."""
    return float((squared_distances(points, points)[np.triu_indices(len(points), k=1)] == 0.0).mean())


def _kernel(first: np.ndarray, second: np.ndarray, bandwidth: float) -> np.ndarray:
    return np.exp(-squared_distances(first, second) / (2.0 * bandwidth**2))
