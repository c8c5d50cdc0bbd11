"""What a study expected, against what its finished members show; and what was compared after the runs, without a verdict.

Every hypothesis and comparison is paired by (order, seed): the figure of ``arm`` minus that of ``against`` (or minus 0). The difference is the mean
of the orders' means (an order with more seeds weighs no more: what differs between orders is no noise), its 95 % t interval is by
the variance within orders. The verdict is by that interval against the margin that was written down before the runs:

    expect          seen                     contradicted              otherwise
    higher          low > margin             high < -margin            not_seen
    lower           high < -margin           low > margin              not_seen
    similar         within +- margin         wholly outside of it      not_seen

``no_data`` where there is no interval (fewer than two pairs in any order). Fewer than MIN_WITHOUT_SPREAD pairs that are all equal are
``not_seen``: their interval has no width, which says nothing. The p-value is that of an exact sign-flip test on the same mean,
Holm-adjusted over all hypotheses with data.

Invariant: a pair counts where both members are whole and were scored on the same problems; the others are named, never dropped silently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from cluster.spec.study import Comparison, Hypothesis, StudySpec
from services.evaluation.paired import NUM_PERMUTATIONS, TOLERANCE, holm
from services.evaluation.plots.intervals import stratified_interval
from services.evaluation.plots.runs import Run
from services.evaluation.retention import BOOTSTRAP_SEED
from services.evaluation.studies.matched_gain import matched_gain
from services.evaluation.studies.members import Key, alike, problem_digests, words_of

MAX_EXACT = 14
"""Differences: 2^14 sign patterns are looked at one by one; of more differences NUM_PERMUTATIONS drawn ones."""
MIN_WITHOUT_SPREAD = 5
OF_CHANGE = ("backward_transfer", "forgetting")
"""Figures that are best where nothing was there to be lost: the average score is told beside them."""
VERDICTS = ("seen", "not_seen", "contradicted", "no_data")
Figures = Mapping[Key, Mapping[str, float | None]]


def verdicts(study: StudySpec, planned: Sequence[Key], figures: Figures, runs: Mapping[Key, Run]) -> list[dict[str, Any]]:
    """One entry per hypothesis, in the file's order. ``planned`` are all members of the study, finished or not."""
    found = [_verdict(hypothesis, planned, figures, runs) for hypothesis in study.hypotheses]
    tested = [item for item in found if item["p_value"] is not None]
    for item, adjusted in zip(tested, holm([item["p_value"] for item in tested]), strict=True):
        item["p_value_holm"] = adjusted
    return found


def comparisons(study: StudySpec, planned: Sequence[Key], figures: Figures, runs: Mapping[Key, Run]) -> list[dict[str, Any]]:
    """One entry per comparison, in the file's order: as a hypothesis's, without verdict and p."""
    return [_contrast(item, planned, figures, runs)[0] for item in study.comparisons]


def _verdict(hypothesis: Hypothesis, planned: Sequence[Key], figures: Figures, runs: Mapping[Key, Run]) -> dict[str, Any]:
    found, by_order = _contrast(hypothesis, planned, figures, runs)
    enough = found["difference"]["low"] is not None
    return {
        **found,
        "verdict": _judged(hypothesis, found["difference"], found["n"]["pairs"]) if enough else "no_data",
        "p_value": sign_flip_p([value / len(group) for group in by_order for value in group]) if enough else None,
        "p_value_holm": None,
    }


def _contrast(item: Comparison, planned: Sequence[Key], figures: Figures, runs: Mapping[Key, Run]) -> tuple[dict[str, Any], list[list[float]]]:
    """The report's entry, and the differences of every order."""
    pairs, left_out, stages_left_out = [], [], 0
    for arm, order, seed in planned:
        if arm != item.arm or (item.orders is not None and order not in item.orders):
            continue
        keys = [(name, order, seed) for name in (item.arm, item.against) if name is not None]
        if len(keys) == 2 and keys[1] not in planned:
            continue  # the other arm does not run in this order
        if item.figure == "drift_at_matched_gain":
            values, stages = _matched(keys, runs)
            stages_left_out += stages
        else:
            values = [figures.get(key, {}).get(item.figure) for key in keys]
        if len(keys) == 2 and not alike(*(problem_digests(runs[key].report) if key in runs else {} for key in keys)):
            left_out += [words_of(key) for key in keys]
            continue
        if None in values:
            left_out += [words_of(key) for key, value in zip(keys, values, strict=True) if value is None]
            continue
        scores = [figures.get(key, {}).get("average_score") for key in keys]
        pairs.append({"order": order, "seed": seed, "arm": values[0], "against": values[1] if len(values) > 1 else 0.0, "average_scores": scores})
    by_order = {order: [pair["arm"] - pair["against"] for pair in pairs if pair["order"] == order] for order in dict.fromkeys(pair["order"] for pair in pairs)}
    estimate = stratified_interval(list(by_order.values()))
    entry = {
        **item.model_dump(mode="json"),
        "difference": {key: estimate[key] for key in ("mean", "low", "high")},
        "by_order": {order: fmean(group) for order, group in by_order.items()},
        "n": {"pairs": len(pairs), "seeds": len({pair["seed"] for pair in pairs}), "orders": len({pair["order"] for pair in pairs})},
        "average_scores": _average_scores(pairs) if item.figure in OF_CHANGE else None,
        "pairs": pairs,
        "left_out": sorted(set(left_out)),
        "stages_left_out": stages_left_out,
    }
    return entry, list(by_order.values())


def _average_scores(pairs: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Of the arm and of the other one, means over the pairs; None where one was not measured."""
    columns = list(zip(*(pair["average_scores"] for pair in pairs), strict=True))
    return [fmean(column) for column in columns] if columns and not any(None in column for column in columns) else None


def _judged(hypothesis: Hypothesis, estimate: Mapping[str, Any], pairs: int) -> str:
    if pairs < MIN_WITHOUT_SPREAD and estimate["low"] == estimate["high"]:
        return "not_seen"
    return judge(hypothesis.expect, hypothesis.margin, estimate["low"], estimate["high"])


def judge(expect: str, margin: float, low: float, high: float) -> str:
    """The verdict on an interval."""
    above, below = low > margin, high < -margin
    if expect == "similar":
        return "seen" if -margin <= low and high <= margin else "contradicted" if above or below else "not_seen"
    expected, opposite = (above, below) if expect == "higher" else (below, above)
    return "seen" if expected else "contradicted" if opposite else "not_seen"


def _matched(keys: Sequence[Key], runs: Mapping[Key, Run]) -> tuple[list[float | None], int]:
    """Drift of both at matched gain, and how many stages could not be matched; None for a member that is not whole."""
    whole = [runs.get(key) if key in runs and runs[key].is_whole else None for key in keys]
    if None in whole:
        return [None if run is None else 0.0 for run in whole], 0
    found = matched_gain(*whole)
    return [found.one, found.other], found.num_left_out


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of a sum of 0 where every sign was a coin; at least 2 / 2^n for n differences (weighted ones too)."""
    known = np.asarray(differences, dtype=np.float64)
    seen = abs(known.sum()) - TOLERANCE * np.abs(known).sum()
    if len(known) <= MAX_EXACT:
        patterns = np.arange(2 ** len(known))[:, None] >> np.arange(len(known)) & 1
        return float((np.abs((2.0 * patterns - 1.0) @ known) >= seen).mean())
    patterns = np.random.default_rng(BOOTSTRAP_SEED).integers(0, 2, size=(NUM_PERMUTATIONS, len(known)))
    extreme = int((np.abs((2.0 * patterns - 1.0) @ known) >= seen).sum())
    return (1 + extreme) / (1 + NUM_PERMUTATIONS)
