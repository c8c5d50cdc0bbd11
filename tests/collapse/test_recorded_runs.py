"""Every detector on whole runs of the small model: what it says of healthy ones, and how soon it speaks in collapsing ones."""

from __future__ import annotations

import json

import pytest

from services.evaluation.collapse import CollapseWatch
from services.evaluation.collapse.detectors import COUNTED, DETECTORS
from tests.collapse.recorded import COLLAPSING, HEALTHY, load, run

RAISED_AT = {
    "collapse-soft": {"score_falls": 92, "teacher_turns_away": 96, "positive_signal_fades": 118, "entropy_rises": 127},
    "collapse-hard": {
        "score_falls": 38,
        "positive_signal_fades": 39,
        "teacher_turns_away": 40,
        "ngrams_amplified": 56,
        "entropy_rises": 60,
        "nothing_right": 63,
        "length_tail": 63,
        "completions_at_cap": 67,
        "repeats_itself": 73,
        "answers_alike": 74,
        "teacher_follows_policy": 93,
        "entropy_falls": 96,
    },
}
"""The step of the first warning; every sign that is not here stays silent in that run."""


def onset(name: str) -> int:
    """The first step from which the mean score of ten steps is for good 0.05 or more below the best mean of ten so far."""
    scores = [step.metrics["rollout/score_mean"] for step in load(name)]
    means = [sum(scores[end - 10 : end]) / 10 for end in range(10, len(scores) + 1)]
    below = [mean <= max(means[: place + 1]) - 0.05 for place, mean in enumerate(means)]
    return next(place for place in range(len(below)) if all(below[place:])) + 10


@pytest.mark.parametrize("name", HEALTHY)
@pytest.mark.parametrize("code", [*DETECTORS, *COUNTED])
def test_no_false_alarm_in_a_healthy_run(name, code):
    assert code not in run(name).raised


def test_healthy_runs_are_long_enough_to_say_something():
    assert sum(len(run(name).findings) for name in HEALTHY) >= 180


@pytest.mark.parametrize("name", COLLAPSING)
def test_signs_of_a_collapsing_run(name):
    first = {code: warnings[0].step for code, warnings in run(name).raised.items()}
    assert first == RAISED_AT[name]


@pytest.mark.parametrize("name", COLLAPSING)
def test_the_fall_of_the_score_is_told_within_ten_steps(name):
    delay = run(name).raised["score_falls"][0].step - onset(name)
    assert 0 <= delay <= 10


@pytest.mark.parametrize("name", COLLAPSING)
def test_one_warning_an_episode(name):
    assert all(len(warnings) == 1 for warnings in run(name).raised.values())


def test_evidence_is_json_and_names_what_was_amplified():
    [warning] = run("collapse-hard").raised["ngrams_amplified"]
    told = json.loads(json.dumps(warning.to_json()))
    [worst, *_] = told["evidence"]["amplified"]
    assert worst["lift"] > 4 and worst["share_now"] > 4 * worst["share_base"] and worst["item"]
    assert told["step"] == 56 and told["stage"] == "collapse-hard"


@pytest.mark.parametrize("stop", [5, 41, 75])
def test_a_restored_watch_goes_on_as_if_it_had_not_stopped(stop):
    steps = load("collapse-hard")
    first = CollapseWatch()
    first.begin_stage("collapse-hard")
    for step in steps[:stop]:
        first.observe(step.step, step.metrics, step.groups)
    second = CollapseWatch()
    second.restore(json.loads(json.dumps(first.state(), allow_nan=False)))
    rest = [second.observe(step.step, step.metrics, step.groups) for step in steps[stop:]]
    assert rest == run("collapse-hard").findings[stop:]


def test_a_new_stage_forgets():
    watch = CollapseWatch()
    watch.begin_stage("collapse-hard")
    for step in load("collapse-hard"):
        watch.observe(step.step, step.metrics, step.groups)
    watch.begin_stage("healthy-sdpo")
    assert [watch.observe(step.step, step.metrics, step.groups) for step in load("healthy-sdpo")] == run("healthy-sdpo").findings
