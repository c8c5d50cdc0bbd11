"""The figures of one member, by the definitions of ``cluster.spec.study.FIGURES``.

Invariant: a figure is of a whole run; where a stage is missing (the run failed or was cancelled) every figure but
``first_stage_gain`` is None (and ``collapsed_stages``, if its method failed), because a mean over fewer stages is another figure. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import fmean, median

from cluster.spec.study import FIGURES, StudySpec
from services.evaluation.collapse.evaluations import SEVERITIES
from services.evaluation.plots.runs import Run
from services.evaluation.studies.members import Record, run_of
from services.jobs.study_records import failed_by_its_method

AMPLIFICATION_CODES = ("ngrams_amplified", "format_amplified")
EVALUATION_CODES = tuple(SEVERITIES)
"""Signs of evaluations: what they say is in other figures already."""
COLLAPSED_SHARE = 0.5
PAIRWISE = ("drift_at_matched_gain",)
"""Figures that need two members: ``matched_gain.py``."""


def member_figures(record: Record, study: StudySpec) -> dict[str, float | None]:
    """Every figure of ``FIGURES``; None where it was not measured, for pairwise ones, and for a record of another study."""
    run = run_of(record, study) if record["study"] == study.name else None
    return {name: None for name in FIGURES} if run is None else figures_of_run(run, failed_by_its_method(record))


def figures_of_run(run: Run, method_failed: bool = False) -> dict[str, float | None]:
    """``method_failed``: the run ended early because of what was trained, which ``collapsed_stages`` counts."""
    found: dict[str, float | None] = {name: None for name in FIGURES}
    if run.counted and run.num_rows > run.counted[0] + 1:
        found["first_stage_gain"] = _gain(run, run.counted[0])
    if run.is_whole and run.counted:
        found |= {name: figure(run) for name, figure in OF_WHOLE_RUNS.items()}
    elif method_failed:
        found["collapsed_stages"] = _collapsed_stages(run)
    return found


def _gain(run: Run, stage: int) -> float:
    return run.own_score(stage + 1, stage) - run.own_score(stage, stage)


def _early_score(run: Run, stage: int) -> float | None:
    inside = run.own_inside(stage)
    return inside[0][1] if inside else None


def _early_gain(run: Run, stage: int) -> float | None:
    score = _early_score(run, stage)
    return None if score is None else score - run.own_score(stage, stage)


def _backward_transfer(run: Run) -> float | None:
    last = len(run.stages)
    return _mean(run.own_score(last, stage) - run.own_score(stage + 1, stage) for stage in run.counted[:-1])


def _forgetting(run: Run) -> float | None:
    last = len(run.stages)
    return _mean(max(run.own_score(row, stage) for row in range(last)) - run.own_score(last, stage) for stage in run.counted[:-1])


def _forward_transfer(run: Run) -> float | None:
    return _mean(run.own_score(stage, stage) - run.own_score(0, stage) for stage in run.counted[1:])


def _out_of_domain_change(run: Run) -> float | None:
    trained, last = set(run.trained), len(run.stages)
    return _mean(run.score(last, name) - run.score(0, name) for name in run.domains if name not in trained | run.setup)


def _response_kl_own(run: Run) -> float | None:
    def of_stage(stage: int) -> float | None:
        entries = {entry["domain"]: entry for entry in run.responses(stage, "stage_end")}
        return _mean(_policy_base(entries.get(name)) for name in run.own[stage])

    return _mean(of_stage(stage) for stage in run.counted)


def _response_kl_earlier(run: Run) -> float | None:
    last = len(run.stages) - 1
    entries = {entry["domain"]: entry for entry in run.responses(last, "stage_end")}
    earlier = dict.fromkeys(name for of_stage in run.own[:last] for name in of_stage)
    return _mean(_policy_base(entries.get(name)) for name in earlier)


def _policy_base(entry) -> float | None:
    return None if entry is None else (entry.get("base") or {}).get("kl_policy_base")


def _response_similarity(run: Run) -> float | None:
    entries = {entry["domain"]: entry for entry in run.responses(len(run.stages) - 1, "stage_end")}
    cosines = [((entries.get(name) or {}).get("base") or {}).get("cosines") for name in run.trained]
    return median(value for of_domain in cosines for value in of_domain) if cosines and all(cosines) else None


def _collapsed_stages(run: Run) -> float:
    """The best score of a stage is over its evaluations inside and its end. The base's score is looked at because a policy that
    is dead already begins, peaks and ends a stage at nothing. A stage without its row is one that the run did not survive."""

    def collapsed(stage: int) -> bool:
        if run.num_rows < stage + 2:
            return True
        end, marks = run.own_score(stage + 1, stage), [run.own_score(stage, stage), run.own_score(0, stage)]
        best = max([end, *(score for _, score in run.own_inside(stage))])
        return end < COLLAPSED_SHARE * max(best, *marks)

    return fmean(collapsed(stage) for stage in run.counted)


def _num_warnings(run: Run, codes: tuple[str, ...] | None = None) -> float | None:
    warnings = run.warnings()
    return None if warnings is None else float(sum(item.get("code") in codes if codes else item.get("code") not in EVALUATION_CODES for item in warnings))


def _mean(values: Iterable[float | None]) -> float | None:
    """None where there is nothing, and where any part is not known: a mean over the rest is another figure."""
    known = list(values)
    return fmean(known) if known and None not in known else None


OF_WHOLE_RUNS: dict[str, Callable[[Run], float | None]] = {
    "gain": lambda run: _mean(_gain(run, stage) for stage in run.counted),
    "last_stage_gain": lambda run: _gain(run, run.counted[-1]),
    "gain_change": lambda run: _gain(run, run.counted[-1]) - _gain(run, run.counted[0]),
    "early_gain": lambda run: _mean(_early_gain(run, stage) for stage in run.counted),
    "first_stage_early_gain": lambda run: _early_gain(run, run.counted[0]),
    "start_score": lambda run: _mean(run.own_score(stage, stage) for stage in run.counted),
    "early_score": lambda run: _mean(_early_score(run, stage) for stage in run.counted),
    "end_score": lambda run: _mean(run.own_score(stage + 1, stage) for stage in run.counted),
    "average_score": lambda run: _mean(run.score(len(run.stages), name) for name in run.trained),
    "backward_transfer": _backward_transfer,
    "forgetting": _forgetting,
    "forward_transfer": _forward_transfer,
    "out_of_domain_change": _out_of_domain_change,
    "parameter_drift": lambda run: run.end_drift(len(run.stages) - 1, "base"),
    "stage_drift": lambda run: _mean(run.end_drift(stage, "start") for stage in run.counted),
    "spectral_drift": lambda run: run.end_drift(len(run.stages) - 1, "base", "nss_weighted"),
    "response_kl_own": _response_kl_own,
    "response_kl_earlier": _response_kl_earlier,
    "response_similarity": _response_similarity,
    "truncation_rate": lambda run: _mean(run.truncation_rate(len(run.stages), name) for name in run.trained),
    "collapse_warnings": _num_warnings,
    "amplification_warnings": lambda run: _num_warnings(run, AMPLIFICATION_CODES),
    "lost_domains": lambda run: _mean(float(run.score(len(run.stages), name) < COLLAPSED_SHARE * run.score(0, name)) for name in run.trained),
    "collapsed_stages": _collapsed_stages,
}
