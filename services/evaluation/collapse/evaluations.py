"""Signs of collapse in a job's evaluations: on the same problems for every policy, so that a stage's first steps, another stage's damage
and methods that learn from other data than their own rollouts are all seen.

``domain_lost``: a domain, trained or not, scores below half of the base model's score: it may be forgotten and come back when
it is trained again, or be ruined. ``evaluation_falls``: a stage's own domain scores 0.05 below its best evaluation since the stage
began. Both must be three standard errors too, and are over where 0.8 of that is left.

Invariants: pure over rows and what was told before, no state of its own, so that looking again tells nothing twice and what was
missed is told later; one warning for all domains of a measurement; rows that were measured on other problems than the newest are
not looked at; failures of a verifier are taken for right answers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from services.evaluation.collapse.episodes import CLEAR_LEVEL
from services.evaluation.collapse.records import CollapseWarning, Severity
from services.evaluation.collapse.signs import SCORE_FALL, SIGMAS, TINY

LOST_SHARE = 0.5
FEW = 5
"""Evaluations of a stage up to which the best one's luck is left out of account."""
SEVERITIES: dict[str, Severity] = {"domain_lost": "warning", "evaluation_falls": "critical"}
MESSAGES = {"domain_lost": "scores fell below half of the base model's", "evaluation_falls": "evaluations fell below their best in this stage"}
WORDS = {"domain_lost": "the base", "evaluation_falls": "at best"}


class Score(Protocol):
    """A row of the store; ``services.jobs.records.EvaluationRecord`` is one."""

    row: int
    at: str
    step: int
    domain: str
    mean: float
    num_problems: int
    problems_digest: str | None


def active_signs(told: Iterable[Mapping[str, Any]], stage: str) -> dict[str, set[str]]:
    """Domains under each sign, from the warnings of the job that still stand, oldest first. A fall is over with its stage."""
    active: dict[str, set[str]] = {code: set() for code in SEVERITIES}
    for item in told:
        if item["code"] in active and (item["code"] == "domain_lost" or item["stage"] == stage):
            change = active[item["code"]].update if item["raised"] else active[item["code"]].difference_update
            change(item["evidence"]["domains"])
    return active


def evaluation_warnings(
    rows: Sequence[Score],
    *,
    stage: str,
    stage_index: int,
    step: int,
    at: str,
    own: Collection[str],
    active: Mapping[str, Collection[str]],
    unverified: Mapping[str, float] | None = None,
) -> list[CollapseWarning]:
    """What the measurement at ``step`` of a stage says that was not told yet.

    ``rows``: all of the job by row and step, this measurement's among them; ``own``: the stage's own domains; ``active``: as
    ``active_signs`` has it; ``unverified``: domain -> share of its answers now that no verifier judged.
    """
    row = stage_index + 1
    histories = {item.domain: _history(rows, item) for item in rows if (item.row, item.step, item.at) == (row, step, at)}
    levels: dict[str, dict[str, float]] = {code: {} for code in SEVERITIES}
    for name, history in histories.items():
        now = min(1.0, history[-1].mean + (unverified or {}).get(name, 0.0))
        if history[0].row == 0 and len(history) > 1:
            levels["domain_lost"][name] = _lost(history[0], now, history[-1].num_problems)
        inside = [one for one in history[:-1] if one.row == row or (one.row == stage_index and one.at == "boundary")]
        if name in own and inside:
            levels["evaluation_falls"][name] = _fall(inside, now, history[-1].num_problems)
    return [warning for code, of_code in levels.items() for warning in _changes(code, of_code, active[code], histories, row, stage, step)]


def _history(rows: Sequence[Score], now: Score) -> list[Score]:
    """Of one domain on the problems of ``now``, up to it."""
    found = [item for item in rows if item.domain == now.domain and item.problems_digest == now.problems_digest]
    return found[: found.index(now) + 1]


def _lost(base: Score, now: float, num_problems: int) -> float:
    """1 where the score is half of the base's and three standard errors below it."""
    error = _error(base.mean, base.num_problems, now, num_problems)
    return min(LOST_SHARE * base.mean / max(now, TINY), (base.mean - now) / (SIGMAS * error))


def _fall(inside: Sequence[Score], now: float, num_problems: int) -> float:
    """1 where the score is far enough below the best of the stage so far: further where that is the best of many."""
    best = max(inside, key=lambda one: one.mean)
    sigmas = SIGMAS + math.sqrt(2.0 * math.log(max(1.0, (len(inside) + 1) / FEW)))
    return (best.mean - now) / max(SCORE_FALL, sigmas * _error(best.mean, best.num_problems, now, num_problems))


def _error(one: float, num_one: int, other: float, num_other: int) -> float:
    """Standard error of the difference, of right-or-wrong scores of independent problems: at least that of the scores in [0, 1] of
    the same problems. A mean of 0 or 1 is taken for half a problem, since its own spread would be none."""

    def variance(mean: float, count: int) -> float:
        mean = min(max(mean, 0.5 / count), 1.0 - 0.5 / count)
        return mean * (1.0 - mean) / count

    return math.sqrt(variance(one, num_one) + variance(other, num_other))


def _changes(
    code: str, levels: Mapping[str, float], active: Collection[str], histories: Mapping[str, Sequence[Score]], row: int, stage: str, step: int
) -> list[CollapseWarning]:
    """One warning of the domains where the sign has come, one of those where it has gone."""
    come = [name for name, level in levels.items() if level >= 1.0 and name not in active]
    gone = [name for name, level in levels.items() if level < CLEAR_LEVEL and name in active]
    warnings = []
    for raised, names in ((True, come), (False, gone)):
        if names:
            places = {name: _place(code, histories[name], row) for name in names}
            told = ", ".join(f"{name} {place['score_now']:.3f} ({WORDS[code]} {place['score_reference']:.3f})" for name, place in places.items())
            message = f"{MESSAGES[code]}: {told}" if raised else f"over: {told}"
            evidence = {"level": min(100.0, max(levels[name] for name in names)), "domains": places}
            warnings.append(CollapseWarning(code=code, severity=SEVERITIES[code], raised=raised, message=message, evidence=evidence, step=step, stage=stage))
    return warnings


def _place(code: str, history: Sequence[Score], row: int) -> dict[str, float]:
    """``score_best`` is the domain's best so far in the job; the reference is the base's score, or the stage's best."""
    best, now = max(history, key=lambda one: one.mean), history[-1]
    of_stage = [one for one in history if one.row == row or (one.row == row - 1 and one.at == "boundary")]
    reference = history[0] if code == "domain_lost" else max(of_stage, key=lambda one: one.mean)
    return {"score_now": now.mean, "score_reference": reference.mean, "score_best": best.mean, "num_problems": now.num_problems}
