"""What is drawn, as JSON values, from any number of runs: a study's, or a single job's.

Place along a run is counted in stages: row r is at x = r, step s of stage j (of S steps) at x = j + s / S. Every point is a mean
over the runs (seeds) that have it, with its 95 % t interval and n.

Invariant: a function of the runs; runs of different orders never share a point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from services.evaluation.plots.intervals import mean_interval
from services.evaluation.plots.runs import Run

Series = list[dict[str, Any]]
MAX_SAMPLE = 300
"""Order statistics that are kept of a pool of cosines, evenly spaced; its quartiles are taken before."""
DRIFT_FIGURES = (("base", "relative_l2"), ("start", "relative_l2"), ("base", "nss_median"), ("base", "max_angle_deg_median"))
MIN_FOR_RANKS = 3
"""Distances: of fewer different ones there is no rank correlation."""
RANK_DECIMALS = 12
"""Values that agree to so many share a rank: .7 - .8 and .8 - .9 are the same change of a score, though not the same float."""


def all_series(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that is drawn of runs."""
    points = distance_points(runs)
    return {
        "orders": order_layouts(runs),
        "scores": score_series(runs),
        "parameter_drift": drift_series(runs),
        "response_kl": response_kl_series(runs),
        "similarity": similarity_samples(runs),
        "distance": {"points": points, "fits": distance_fits(points)},
        "matrices": mean_matrices(runs),
    }


def _by_order(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.order].append(run)
    return found


def order_layouts(runs: Sequence[Run]) -> Series:
    """Per order its stages, which domains each is about, and the domains of the matrix; by the first run of it."""
    return [
        {
            "order": order,
            "stages": [{"name": stage["name"], "steps": stage["steps"], "domains": list(own)} for stage, own in zip(of_order[0].stages, of_order[0].own, strict=True)],
            "domains": list(of_order[0].domains),
        }
        for order, of_order in _by_order(runs).items()
    ]


def _lines(found: Iterable[tuple[tuple, float, float]], names: Sequence[str]) -> Series:
    """(names of the line, x, value) of all runs -> one line each, with points by x."""
    pools: dict[tuple, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line, x, value in found:
        pools[line][round(x, 6)].append(value)
    return [
        {**dict(zip(names, line, strict=True)), "points": [{"x": x, **mean_interval(by_x[x])} for x in sorted(by_x)]}
        for line, by_x in pools.items()
    ]


def _place(run: Run, stage: int, step: int) -> float:
    steps = run.stages[stage]["steps"]
    return stage + (min(1.0, step / steps) if steps else 1.0)


def score_series(runs: Sequence[Run]) -> Series:
    """Per order, domain and arm: the rows, and the evaluations inside stages."""

    def found():
        for run in runs:
            for domain in run.domains:
                for row in range(run.num_rows):
                    yield (run.order, domain, run.arm), float(row), run.score(row, domain)
            for stage in range(len(run.stages)):
                for step, means in run.inside(stage):
                    for domain, mean in means.items():
                        yield (run.order, domain, run.arm), _place(run, stage, step), mean

    return _lines(found(), ("order", "domain", "arm"))


def drift_series(runs: Sequence[Run]) -> Series:
    """Per order, arm, reference and figure; a line against ``start`` begins at 0 in every stage."""

    def found():
        for run in runs:
            for reference, figure in DRIFT_FIGURES:
                for stage in range(len(run.stages)):
                    points = run.drift(stage, reference, figure)
                    for step, value in points:
                        yield (run.order, run.arm, reference, figure), _place(run, stage, step), value

    return _lines(found(), ("order", "arm", "reference", "figure"))


def response_kl_series(runs: Sequence[Run]) -> Series:
    """KL(policy||base) on probes, nats per token, per order, arm and ``role``: of the stage's own domains, and of earlier stages'."""

    def found():
        for run in runs:
            for stage in range(len(run.stages)):
                earlier = {name for of_stage in run.own[:stage] for name in of_stage} - set(run.own[stage])
                pools: dict[tuple[str, int], list[float]] = defaultdict(list)
                for entry in run.responses(stage):
                    role = "own" if entry["domain"] in run.own[stage] else "earlier" if entry["domain"] in earlier else None
                    value = (entry.get("base") or {}).get("kl_policy_base")
                    if role and value is not None:
                        pools[role, entry["step"]].append(value)
                for (role, step), values in pools.items():
                    yield (run.order, run.arm, role), _place(run, stage, step), fmean(values)

    return _lines(found(), ("order", "arm", "role"))


def similarity_samples(runs: Sequence[Run]) -> Series:
    """Cosines to the base's answers at stage ends, pooled over runs and over the domains that the job trains on."""
    pools: dict[tuple, list[float]] = defaultdict(list)
    counts: dict[tuple, int] = defaultdict(int)
    for run in runs:
        for stage in range(len(run.stages)):
            entries = [entry for entry in run.responses(stage, "stage_end") if entry["domain"] in run.trained]
            cosines = [value for entry in entries for value in (entry.get("base") or {}).get("cosines") or []]
            if cosines:
                pools[run.order, run.arm, stage] += cosines
                counts[run.order, run.arm, stage] += 1
    found = []
    for (order, arm, stage), values in pools.items():
        q25, q50, q75 = (float(value) for value in np.percentile(values, (25, 50, 75)))
        found.append({"order": order, "arm": arm, "stage_index": stage, "n": counts[order, arm, stage], "num_prompts": len(values), "q25": q25, "median": q50, "q75": q75, "sample": _thinned(values)})
    return found


def _thinned(values: Sequence[float]) -> list[float]:
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if len(ordered) > MAX_SAMPLE:
        ordered = ordered[np.linspace(0, len(ordered) - 1, MAX_SAMPLE).round().astype(int)]
    return [round(float(value), 4) for value in ordered]


def distance_points(runs: Sequence[Run]) -> Series:
    """For a domain learned earlier and each later stage: the change of its score over that stage, against MMD^2 between its
    prompts and those of the stage's domains (their mean)."""
    found = []
    for run in runs:
        for stage in range(1, run.num_rows - 1):
            earlier = dict.fromkeys(name for of_stage in run.own[:stage] for name in of_stage)
            for domain in earlier:
                distances = [run.distance(domain, name) for name in run.own[stage]]
                if not distances or domain in run.own[stage] or None in distances:  # a stage that only prepares is about no domain
                    continue
                change = run.score(stage + 1, domain) - run.score(stage, domain)
                found.append({"arm": run.arm, "order": run.order, "seed": run.seed, "domain": domain, "stage": run.stages[stage]["name"], "mmd_squared": fmean(distances), "change": change})
    return found


def distance_fits(points: Series) -> Series:
    """Per order and arm: least-squares line and Spearman's rank correlation over all their points. Orders are not pooled: in each a
    pair of domains lies at another place of the run, and an arm's orders need not be another's."""
    from scipy.stats import spearmanr

    found = []
    for order, arm in dict.fromkeys((point["order"], point["arm"]) for point in points):
        own = [point for point in points if (point["order"], point["arm"]) == (order, arm)]
        x, y = (np.array([point[key] for point in own]) for key in ("mmd_squared", "change"))
        pairs = {(point["domain"], point["stage"]) for point in own}
        rounded_x, rounded_y = x.round(RANK_DECIMALS), y.round(RANK_DECIMALS)
        enough = len(np.unique(rounded_x)) >= MIN_FOR_RANKS and len(np.unique(rounded_y)) > 1
        slope, intercept = (float(value) for value in np.polyfit(x, y, 1)) if enough else (None, None)
        ranks = float(spearmanr(rounded_x, rounded_y).statistic) if enough else None
        found.append({"order": order, "arm": arm, "n": len(x), "num_pairs": len(pairs), "slope": slope, "intercept": intercept, "spearman": ranks, "low": float(x.min()), "high": float(x.max())})
    return found


def mean_matrices(runs: Sequence[Run]) -> Series:
    """Per order and arm the score matrix, every cell a mean over the runs that have it."""
    found = []
    for order, of_order in _by_order(runs).items():
        for arm in dict.fromkeys(run.arm for run in of_order):
            members = [run for run in of_order if run.arm == arm and run.num_rows]
            if not members:
                continue
            rows = max(run.num_rows for run in members)
            means = [[fmean(run.score(row, name) for run in members if row < run.num_rows) for name in members[0].domains] for row in range(rows)]
            found.append({"order": order, "arm": arm, "rows": ["base", *(stage["name"] for stage in members[0].stages)][:rows], "domains": list(members[0].domains), "means": means, "n": [sum(row < run.num_rows for run in members) for row in range(rows)]})
    return found
