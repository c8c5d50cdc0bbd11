"""Signs of collapse in a job's evaluations: on the same problems for every policy, so that a stage's first steps, another stage's damage
and methods that learn from other data than their own rollouts are all seen.

``domain_lost``: a domain, trained or not, scores below half of the base model's score: it may be forgotten and come back when
it is trained again, or be ruined. ``evaluation_falls``: a stage's own domain
scores 0.05 below its best evaluation since the stage began. Both must be three standard errors too.

Invariants: pure over rows, no state of its own; a sign is told when it comes and when it goes, once for all domains of a measurement;
rows that were measured on other problems than the newest are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from services.evaluation.collapse.records import CollapseWarning, Severity
from services.evaluation.collapse.signs import SCORE_FALL, SIGMAS

LOST_SHARE = 0.5
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


def evaluation_warnings(rows: Sequence[Score], *, stage: str, stage_index: int, step: int, at: str) -> list[CollapseWarning]:
    """What the measurement at ``step`` of a stage says. ``rows``: all of the job by row and step, this measurement's among them."""
    row = stage_index + 1
    histories = {item.domain: _history(rows, item) for item in rows if (item.row, item.step, item.at) == (row, step, at)}
    found = _changes("domain_lost", {name: [_is_lost(history[0], one) for one in history] for name, history in histories.items() if history[0].row == 0}, histories, stage, step)
    of_stage = {name: [one for one in history if one.row == row or (one.row == stage_index and one.at == "boundary")] for name, history in histories.items()}
    own = {name: history for name, history in of_stage.items() if any(one.at == "during" for one in history)}
    return found + _changes("evaluation_falls", {name: _falls(history) for name, history in own.items()}, own, stage, step)


def _history(rows: Sequence[Score], now: Score) -> list[Score]:
    """Of one domain on the problems of ``now``, up to it."""
    found = [item for item in rows if item.domain == now.domain and item.problems_digest == now.problems_digest]
    return found[: found.index(now) + 1]


def _is_lost(base: Score, now: Score) -> bool:
    return now.mean < LOST_SHARE * base.mean and base.mean - now.mean >= SIGMAS * _error(base, now)


def _falls(history: Sequence[Score]) -> list[bool]:
    found = []
    for place, now in enumerate(history):
        best = max(history[: place + 1], key=lambda one: one.mean)
        found.append(best.mean - now.mean >= max(SCORE_FALL, SIGMAS * _error(best, now)))
    return found


def _error(one: Score, other: Score) -> float:
    """Standard error of the difference, of right-or-wrong scores of independent problems: at least that of the scores in [0, 1] of
    the same problems. A mean of 0 or 1 is taken for half a problem, since its own spread would be none."""

    def variance(score: Score) -> float:
        edge = 0.5 / score.num_problems
        mean = min(max(score.mean, edge), 1.0 - edge)
        return mean * (1.0 - mean) / score.num_problems

    return math.sqrt(variance(one) + variance(other))


def _changes(code: str, signs: Mapping[str, list[bool]], histories: Mapping[str, Sequence[Score]], stage: str, step: int) -> list[CollapseWarning]:
    """One warning of the domains where the sign has come with the newest row, one of those where it has gone."""
    warnings = []
    for raised in (True, False):
        names = [name for name, seen in signs.items() if seen[-1] == raised and len(seen) > 1 and seen[-2] != raised]
        if names:
            places = {name: _place(code, histories[name]) for name in names}
            told = ", ".join(f"{name} {place['score_now']:.3f} ({WORDS[code]} {place['score_reference']:.3f})" for name, place in places.items())
            message = f"{MESSAGES[code]}: {told}" if raised else f"over: {told}"
            warnings.append(CollapseWarning(code=code, severity=SEVERITIES[code], raised=raised, message=message, evidence={"domains": places}, step=step, stage=stage))
    return warnings


def _place(code: str, history: Sequence[Score]) -> dict[str, float]:
    best, now = max(history, key=lambda one: one.mean), history[-1]
    reference = history[0] if code == "domain_lost" else best
    return {"score_now": now.mean, "score_reference": reference.mean, "score_best": best.mean, "num_problems": now.num_problems}
