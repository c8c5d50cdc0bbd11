"""Signs that no recorded collapse showed, planted into a healthy recorded run from step 50 on; and odd input."""

from __future__ import annotations

import dataclasses
import json

import pytest

from services.evaluation.collapse import CollapseWatch
from tests.collapse.recorded import group_of, load

PLANTED = 50


def watched(change, name="healthy-sdpo"):
    """First step of every warning of a run whose steps from ``PLANTED`` on went through ``change(metrics, groups)``."""
    watch, raised, cleared = CollapseWatch(), {}, {}
    watch.begin_stage(name)
    for step in load(name):
        metrics, groups = step.metrics, step.groups
        if step.step >= PLANTED:
            metrics, groups = change(dict(metrics), groups)
        for warning in watch.observe(step.step, metrics, groups).warnings:
            (raised if warning.raised else cleared).setdefault(warning.code, warning)
    return raised, cleared


def with_values(**values):
    return lambda metrics, groups: (metrics | {name.replace("__", "/"): value for name, value in values.items()}, groups)


def with_text(text):
    """The same completions, with ``text`` before two of every group's eight."""

    def change(metrics, groups):
        changed = []
        for group in groups:
            rollouts = [
                dataclasses.replace(one, text=text + one.text) if place < 2 else one for place, one in enumerate(group.rollouts)
            ]
            changed.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
        return metrics, changed

    return change


@pytest.mark.parametrize(
    "code, change",
    [
        ("context_missing", with_values(teacher__context_share=0.4)),
        ("completions_at_cap", with_values(rollout__truncated_share=0.2)),
        ("gradient_vanishes", with_values(gradient__norm=0.001, loss__total=0.01)),
        ("hedging", with_text("Maybe ")),
        ("self_correction", with_text("Wait, no, ")),
        ("format_amplified", with_text(r"\boxed{")),
    ],
)
def test_planted_sign_is_found_within_a_window(code, change):
    raised, _ = watched(change)
    # a planted comma is a format piece too
    assert {code} <= set(raised) <= {code, "format_amplified"}
    assert PLANTED < raised[code].step <= PLANTED + 10


def test_format_amplification_names_the_piece():
    raised, _ = watched(with_text(r"\boxed{"))
    shares = {one["text"]: one["share_base"] for one in raised["format_amplified"].evidence["amplified"]}
    # two of the 1280 completions of the first ten steps had a brace of their own
    assert shares == {r"\boxed": 0.0, "{": 2 / 1280}


def test_a_sign_that_goes_away_is_cleared():
    def change(metrics, groups, seen=[]):  # noqa: B006
        seen.append(1)
        return (metrics | {"teacher/context_share": 0.1}, groups) if len(seen) <= 15 else (metrics, groups)

    raised, cleared = watched(change)
    assert set(raised) == set(cleared) == {"context_missing"}
    assert cleared["context_missing"].evidence["raised_at_step"] == raised["context_missing"].step


def test_a_gap_that_grows_with_position():
    watch, found = CollapseWatch(), []
    watch.begin_stage("long")
    for step in range(60):
        late = 0.2 if step < 30 else 0.2 + 0.1 * (step - 30)
        values = {"teacher/gap_nats/at_0": 0.1, "teacher/gap_nats/at_16": 0.15, "teacher/gap_nats/at_64": late}
        found += watch.observe(step, values, []).warnings
    assert [warning.code for warning in found] == ["gap_grows_with_position"]
    assert found[0].evidence["bucket"] == "teacher/gap_nats/at_64"
    # 0.5 nats wider at step 35; the median of ten steps is there five steps later
    assert 40 <= found[0].step <= 44


def test_a_solved_domain_without_gradient_is_no_sign():
    solved = {
        "gradient/norm": 0.0,
        "rollout/score_mean": 0.99,
        "loss/total": 0.0,
        "policy/entropy_nats": 0.001,
        "teacher/kl_nats": 0.0,
    }
    raised, _ = watched(lambda metrics, groups: (metrics | solved, groups))
    assert raised == {}


def test_a_weaker_signal_in_a_solved_domain_is_no_sign():
    """Three healthy stages of the study raised it: scores of 0.98 from the tenth step on, and a teacher that had less and less to add."""
    watch, codes = CollapseWatch(), []
    watch.begin_stage("solved")
    for step in range(60):
        share = 0.5 if step < 15 else 0.3
        codes += [warning.code for warning in watch.observe(step, {"rollout/score_mean": 0.98, "teacher/positive_share": share}, []).warnings]
    assert codes == []
    watch.begin_stage("not solved")
    for step in range(60):
        share = 0.5 if step < 15 else 0.3
        codes += [warning.code for warning in watch.observe(step, {"rollout/score_mean": 0.7, "teacher/positive_share": share}, []).warnings]
    assert codes == ["positive_signal_fades"]


@pytest.mark.parametrize("beside, said", [({}, ["nothing_right", "teacher_follows_policy"]), ({"rollout/prefix_tokens": 64.0}, [])])
def test_a_score_of_nothing_is_a_sign_but_where_prefixes_alone_are_written(beside, said):
    """Answers that are cut at a prefix are never right; a teacher that comes to agree is what that stage is for."""
    watch, codes = CollapseWatch(), []
    watch.begin_stage("nothing")
    for step in range(60):
        values = {"rollout/score_mean": 0.0, "teacher/kl_nats": 2.0 if step < 20 else 0.1, **beside}
        codes += [warning.code for warning in watch.observe(step, values, []).warnings]
    assert codes == said


@pytest.mark.parametrize("score_now, said", [(0.4, ["score_falls", "answers_shrink"]), (0.8, [])])
def test_answers_that_shrink_are_a_sign_where_the_score_falls(score_now, said):
    watch, codes = CollapseWatch(), []
    watch.begin_stage("short")
    for step in range(60):
        before = step < 30
        values = {"rollout/score_mean": 0.8 if before else score_now, "rollout/length_p95": 20.0 if before else 6.0}
        codes += [warning.code for warning in watch.observe(step, values, []).warnings]
    assert sorted(codes) == sorted(said)


def test_missing_and_not_finite_values_say_nothing():
    watch = CollapseWatch()
    watch.begin_stage("odd")
    group = group_of(0, [[1]], ["a"])
    for step in range(40):
        findings = watch.observe(
            step, {"rollout/score_mean": float("nan"), "gradient/norm": float("inf")}, [group] if step % 2 else []
        )
        assert findings.warnings == [] and "collapse/level/score_falls" not in findings.metrics
    json.dumps(watch.state(), allow_nan=False)


def test_a_base_that_is_handed_in_is_used_from_the_first_steps():
    watch, codes = CollapseWatch(decode=lambda ids: "".join(chr(96 + one) for one in ids)), []
    watch.begin_stage("given", base=[([2, 3], "bc")] * 200)
    for step in range(20):
        codes += watch.observe(step, {}, [group_of(0, [[1, 1]] * 20, ["aa"] * 20)]).warnings
    assert [warning.code for warning in codes] == ["ngrams_amplified"]
    assert codes[0].evidence["amplified"][0]["text"] in {"a", "aa"}


def test_a_state_of_another_format_is_refused():
    with pytest.raises(ValueError, match="format is 'other'"):
        CollapseWatch().restore({"format": "other"})
