"""Drift of two runs where they have gained the same, and where they have trained as long.

An arm that learns more also moves more; so drift is compared at the own-domain gain that both reached. Per stage the level is
0.9 of the smaller of the two runs' best gains; a run's drift there is read off its path (gain, drift) over the stage's evaluations,
piecewise linear from (0, 0) at step 0, where the path first gets to the level.

Invariant: swapping the runs swaps the figures. A stage whose level is below MIN_LEVEL, or where a run has no path, is left out
and counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from services.evaluation.plots.runs import Run

MIN_LEVEL = 0.1
"""Own-domain gain in share of problems: below it the gain of a run is mostly the noise of its evaluations."""
OF_BEST = 0.9
"""Share of the smaller best gain that is matched: the best itself is reached by chance where a run has levelled out."""
Path = list[tuple[int, float, float]]
"""(step, gain, drift), by step, from (0, 0, 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedDrift:
    """Means over the stages that count; None where none does."""

    one: float | None
    other: float | None
    num_stages: int
    num_left_out: int


def stage_path(run: Run, stage: int) -> Path:
    """Evaluations of a finished stage at which drift against its first weights was measured too."""
    if run.num_rows < stage + 2:
        return []
    start, drift = run.own_score(stage, stage), dict(run.drift(stage, "start"))
    end = run.stages[stage]["steps"]
    scores = [*run.own_inside(stage), (end, run.own_score(stage + 1, stage))]
    points = [(step, score - start, drift[step]) for step, score in scores if step in drift]
    return [(0, 0.0, 0.0), *points] if points else []


def drift_at_gain(path: Path, level: float) -> float | None:
    """Where the path first gets to ``level``, by linear interpolation; None where it never does."""
    for (_, gain, drift), (_, next_gain, next_drift) in pairwise(path):
        if gain < level <= next_gain:
            return drift + (next_drift - drift) * (level - gain) / (next_gain - gain)
    return None


def matched_gain(one: Run, other: Run) -> MatchedDrift:
    """Of two runs of the same order and seed."""
    pairs, left_out = [], 0
    for paths in _paths(one, other):
        level = OF_BEST * min(max((gain for _, gain, _ in path), default=0.0) for path in paths)
        if level < MIN_LEVEL:
            left_out += 1
            continue
        pairs.append([drift_at_gain(path, level) for path in paths])
    return _means(pairs, left_out)


def matched_steps(one: Run, other: Run) -> MatchedDrift:
    """The same at the evaluation points (steps of a stage) that both have, first over the points of a stage, then over stages."""
    pairs, left_out = [], 0
    for paths in _paths(one, other):
        drifts = [{step: drift for step, _, drift in path[1:]} for path in paths]
        common = sorted(set(drifts[0]) & set(drifts[1]))
        if not common:
            left_out += 1
            continue
        pairs.append([fmean(of_run[step] for step in common) for of_run in drifts])
    return _means(pairs, left_out)


def _paths(one: Run, other: Run) -> list[tuple[Path, Path]]:
    if len(one.stages) != len(other.stages):
        raise ValueError(f"runs of one order have the same stages; these have {len(one.stages)} and {len(other.stages)}")
    return [(stage_path(one, stage), stage_path(other, stage)) for stage in one.counted]


def _means(pairs: Sequence[Sequence[float]], left_out: int) -> MatchedDrift:
    one, other = (fmean(pair[side] for pair in pairs) if pairs else None for side in (0, 1))
    return MatchedDrift(one=one, other=other, num_stages=len(pairs), num_left_out=left_out)
