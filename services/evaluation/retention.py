"""What a job gained and what it lost: figures over the score matrix, with bootstrap intervals.

R[r, d] is the mean score on domain d in row r; row 0 is the base model, row j the policy after stage j (1 to T). A stage's own
score, own(r, j), is the mean of R[r, d] over the domains of stage j (one, unless the stage is a mixture). Backward and forward
transfer follow Lopez-Paz and Ranzato (1706.08840), forgetting Chaudhry et al. (1801.10112). Pure functions.

Invariant: rows are paired problem by problem. The bootstrap draws problems, the same ones for every row of a domain, and
domains independently of each other; so the interval of a difference is that of the paired difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import HoldfastError

CONFIDENCE = 0.95
NUM_RESAMPLES = 4000
SCORES_AT_ONCE = 1 << 20
"""Of one domain, resampled together: 8 MiB."""
BOOTSTRAP_SEED = 0


class EvaluationError(HoldfastError):
    """Rows that were not measured on the same problems cannot be compared."""

    reason = "evaluations_not_comparable"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % percentile interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionReport:
    """Every figure; None where there are too few stages for it."""

    domains: list[str]
    num_problems: dict[str, int]
    score_matrix: list[list[Estimate]]
    """[row][domain]"""
    stage_gains: list[Estimate]
    """own(j, j) - own(j - 1, j): what each stage did to what it was trained on."""
    earlier_changes: list[Estimate | None]
    """Mean over the domains of stages before j, those of stage j itself left out, of R[j, d] - R[j - 1, d]: what each stage did to
    what had been learned before; None where there is no such domain."""
    average_score: Estimate
    """Mean of the last row over the domains that were trained on (over all, before the first stage)."""
    backward_transfer: Estimate | None
    """Mean over j < T of own(T, j) - own(j, j). Test hypotheses on this one."""
    forgetting: Estimate | None
    """Mean over j < T of max over rows r < T of own(r, j), minus own(T, j). The maximum picks up noise: biased upward, the more
    so the more rows and the fewer problems there are; its interval is around the biased value."""
    forward_transfer: Estimate | None
    """Mean over j > 1 of own(j - 1, j) - own(0, j): what earlier stages did for a domain before it was trained on."""
    change_from_base: dict[str, Estimate]
    """R[T, d] - R[0, d] of every domain, suites that no stage trained on included."""
    last: dict[str, Estimate]
    """R[T, d] of every domain: the scores after the last row's stage."""
    confidence: float = CONFIDENCE
    num_resamples: int = NUM_RESAMPLES

    def to_dict(self) -> dict[str, Any]:
        """JSON values alone."""
        return dataclasses.asdict(self)


def retention(
    score_rows: Sequence[Mapping[str, Sequence[float]]],
    stage_domains: Sequence[Sequence[str] | str],
) -> RetentionReport:
    """Figures of a job so far. ``score_rows[r][domain]`` holds float [N] scores; the first row is the base model's.

    ``stage_domains[j - 1]`` names the domains that stage j was trained on; further stages are ignored. Raises EvaluationError
    ``evaluations_not_comparable`` where two rows have other domains or another number of problems; rows that were measured
    on other problems are cut off before (``report_comparisons.comparable``).
    """
    rows = [{name: np.asarray(scores, dtype=np.float64) for name, scores in row.items()} for row in score_rows]
    _check_rows(rows)
    domains = list(rows[0])
    scores = [np.stack([row[name] for row in rows]) for name in domains]
    own = _own_domains(domains, stage_domains, num_stages=len(rows) - 1)
    earlier = _earlier_domains(own)
    figures = _figures(own, earlier, num_domains=len(domains))
    estimates = iter(_estimate(scores, [figure for _, figure in figures]))
    found: dict[str, list[Estimate]] = {}
    for name, _ in figures:
        found.setdefault(name, []).append(next(estimates))
    cells, changes = found["cell"], iter(found.get("earlier_change", []))
    return RetentionReport(
        domains=domains,
        num_problems={name: len(rows[0][name]) for name in domains},
        score_matrix=[cells[start : start + len(domains)] for start in range(0, len(cells), len(domains))],
        stage_gains=found.get("stage_gain", []),
        earlier_changes=[next(changes) if columns else None for columns in earlier],
        average_score=found["average_score"][0],
        backward_transfer=found.get("backward_transfer", [None])[0],
        forgetting=found.get("forgetting", [None])[0],
        forward_transfer=found.get("forward_transfer", [None])[0],
        change_from_base=dict(zip(domains, found["change_from_base"], strict=True)),
        last=dict(zip(domains, cells[-len(domains) :], strict=True)),
    )


def _check_rows(rows: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Raise EvaluationError unless every row holds finite scores of the same domains and as many problems."""
    if not rows or not rows[0]:
        raise EvaluationError("there is no evaluation to compare")
    for index, row in enumerate(rows):
        if set(row) != set(rows[0]):
            raise EvaluationError(f"row {index} has the domains {sorted(row)}, row 0 has {sorted(rows[0])}")
        for name, scores in row.items():
            if scores.ndim != 1 or len(scores) != len(rows[0][name]) or len(scores) == 0:
                raise EvaluationError(f"domain {name}: row {index} has scores of {scores.shape} problems, row 0 of {rows[0][name].shape}")
            if not np.isfinite(scores).all():
                raise EvaluationError(f"domain {name}: row {index} has scores that are not finite")


def _own_domains(domains: list[str], stage_domains: Sequence[Sequence[str] | str], *, num_stages: int) -> list[list[int]]:
    """Per stage done, the columns of the domains that it was trained on."""
    if len(stage_domains) < num_stages:
        raise ValueError(f"{num_stages + 1} rows are {num_stages} stages, but the domains of {len(stage_domains)} are given")
    own = [[names] if isinstance(names, str) else list(names) for names in stage_domains[:num_stages]]
    for index, names in enumerate(own):
        if not names or set(names) - set(domains):
            raise ValueError(f"stage {index} was trained on {names}, evaluated are {domains}")
    return [[domains.index(name) for name in names] for names in own]


def _earlier_domains(own: list[list[int]]) -> list[list[int]]:
    """Per stage done, the columns of what earlier stages were trained on and this one is not."""
    return [sorted({column for before in own[:index] for column in before} - set(columns)) for index, columns in enumerate(own)]


Figure = Callable[[np.ndarray], np.ndarray]
"""means [rows, domains, ...] -> [...]"""


def _figures(own: list[list[int]], earlier: list[list[int]], *, num_domains: int) -> list[tuple[str, Figure]]:
    """Every figure as a function of the cell means; R[r, d] first, row by row."""
    last = len(own)
    trained = sorted({column for columns in own for column in columns}) or list(range(num_domains))

    def own_score(means: np.ndarray, row: int, stage: int) -> np.ndarray:
        return means[row, own[stage - 1]].mean(axis=0)

    def average(terms: Callable[[np.ndarray, int], np.ndarray], stages: range) -> Figure:
        return lambda means: np.mean([terms(means, stage) for stage in stages], axis=0)

    def best_before_last(means: np.ndarray, stage: int) -> np.ndarray:
        return np.max([own_score(means, row, stage) for row in range(last)], axis=0)

    figures: list[tuple[str, Figure]] = [
        ("cell", lambda means, row=row, column=column: means[row, column]) for row in range(last + 1) for column in range(num_domains)
    ]
    figures += [("change_from_base", lambda means, column=column: means[last, column] - means[0, column]) for column in range(num_domains)]
    figures += [("average_score", lambda means: means[last, trained].mean(axis=0))]
    figures += [
        ("stage_gain", lambda means, stage=stage: own_score(means, stage, stage) - own_score(means, stage - 1, stage))
        for stage in range(1, last + 1)
    ]
    figures += [
        ("earlier_change", lambda means, row=row, columns=columns: (means[row, columns] - means[row - 1, columns]).mean(axis=0))
        for row, columns in enumerate(earlier, start=1)
        if columns
    ]
    if last < 2:
        return figures
    before_last, later = range(1, last), range(2, last + 1)
    return [
        *figures,
        ("backward_transfer", average(lambda means, j: own_score(means, last, j) - own_score(means, j, j), before_last)),
        ("forgetting", average(lambda means, j: best_before_last(means, j) - own_score(means, last, j), before_last)),
        ("forward_transfer", average(lambda means, j: own_score(means, j - 1, j) - own_score(means, 0, j), later)),
    ]


def _estimate(scores: list[np.ndarray], figures: list[Figure]) -> list[Estimate]:
    """All figures over one set of resamples. ``scores[d]`` is [rows, N_d]; what is drawn are indices of problems."""
    from scipy.stats import bootstrap

    def statistic(*indices: np.ndarray, axis: int = -1) -> np.ndarray:
        means = np.stack([np.take(of_domain, index, axis=1).mean(axis=-1) for of_domain, index in zip(scores, indices, strict=True)], axis=1)
        return np.stack([figure(means) for figure in figures])

    everything = tuple(np.arange(of_domain.shape[1]) for of_domain in scores)
    values = statistic(*everything)
    if max(len(indices) for indices in everything) == 1:
        return [Estimate(float(value), float(value), float(value)) for value in values]
    interval = bootstrap(
        tuple(indices if len(indices) > 1 else np.zeros(2, dtype=int) for indices in everything),  # scipy refuses a single problem
        statistic,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, SCORES_AT_ONCE // max(of_domain.size for of_domain in scores)),
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    ).confidence_interval
    return [Estimate(*map(float, found)) for found in zip(values, interval.low, interval.high, strict=True)]
