"""How often ``score_falls`` is wrong about a score that only jumps around one level, and that it still sees a fall there."""

from __future__ import annotations

import numpy as np
import pytest

from services.evaluation.collapse import CollapseWatch
from services.evaluation.collapse.signs import sigmas_from_best

SEEDS = 60
NOISE = 0.08
"""Of one step's mean score: 16 problems of 8 rollouts each jump by 0.05 to 0.08 in the recorded runs."""


def first_alarm(scores: np.ndarray, after: int = 0) -> int | None:
    watch = CollapseWatch()
    watch.begin_stage("level")
    for step, score in enumerate(scores, start=1):
        for warning in watch.observe(step, {"rollout/score_mean": float(score)}, []).warnings:
            if warning.code == "score_falls" and warning.raised and step > after:
                return step
    return None


def alarms(steps: int) -> float:
    generator = np.random.default_rng(3)
    return sum(first_alarm(generator.normal(0.6, NOISE, steps)) is not None for _ in range(SEEDS)) / SEEDS


@pytest.mark.parametrize(("steps", "most"), [(50, 0.05), (300, 0.25), (600, 0.3)])
def test_a_level_score_seldom_alarms(steps, most):
    assert alarms(steps) <= most


def test_a_fall_of_a_fifth_late_in_a_long_stage_is_told_within_fifteen_steps():
    generator = np.random.default_rng(5)
    level = np.concatenate([np.full(600, 0.6), np.full(40, 0.4)])
    delays = [first_alarm(level + generator.normal(0.0, 0.03, len(level)), after=600) - 600 for _ in range(20)]
    assert max(delays) <= 15


def test_the_best_of_more_windows_is_further_away_by_chance():
    assert sigmas_from_best(10) == sigmas_from_best(100) == 3.0
    assert sigmas_from_best(1000) == pytest.approx(3.0 + (2.0 * np.log(10.0)) ** 0.5)
