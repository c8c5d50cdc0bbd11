"""Real Ray: a killed teacher is replaced by one that continues exactly, and its errors keep their reason codes."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import ray
from tiny_teacher import build_model, float64_average, largest_difference, policy_tensors, publish, requests

from cluster.errors import TeacherError
from cluster.spec.composition import EmaTeacher
from services.teacher import group as group_module
from services.teacher.canary import TeacherCanary
from services.teacher.group import TeacherGroup
from services.teacher.scorer import TeacherScorer

EMA = EmaTeacher(update_rate=0.05)


@pytest.fixture(scope="module", autouse=True)
def small_ray():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False, object_store_memory=80 << 20)
    yield
    ray.shutdown()


def _group(model_folder, num_teachers: int = 1) -> TeacherGroup:
    return TeacherGroup.create(num_teachers, model_folder=str(model_folder), device="cpu", threads=1)


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")


def test_a_killed_teacher_continues_exactly_from_its_checkpoint(tmp_path):
    model_folder = build_model(tmp_path / "model", tied=True)
    snapshots = publish(tmp_path / "s", model_folder, 8)
    group, canary = _group(model_folder), TeacherCanary()
    canary.restart(EMA, group.begin_stage(EMA, anchor="base", update=0))
    for update in (1, 2, 3):
        canary.observe(group.follow(update, snapshots[update - 1]), snapshots[update - 1])
    group.save(tmp_path / "teacher")
    group.follow(4, snapshots[3])
    pid = group.wait_until_ready()[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    _wait_for_end(pid)
    with pytest.raises(TeacherError) as caught:
        group.follow(5, snapshots[4])
    assert caught.value.reason == "teacher_lost"

    group = _group(model_folder)
    assert group.load(tmp_path / "teacher").teacher_version == 3
    canary.restart(EMA, group.begin_stage(EMA, anchor="resume", update=3))
    for update in range(4, 9):
        canary.observe(group.follow(update, snapshots[update - 1]), snapshots[update - 1])
    group.save(tmp_path / "after")
    after = TeacherScorer(model_folder)
    after.load(tmp_path / "after")
    assert after.teacher_version == 8
    assert largest_difference(after._state, float64_average(policy_tensors(model_folder), snapshots, 0.05)) < 1e-6

    asked = requests(5, support_k=3)
    for scores, expected in zip(group.score(asked, temperature=0.9), after.score(asked, temperature=0.9), strict=True):
        assert (scores.rollout_id, scores.teacher_version) == (expected.rollout_id, 8)
        np.testing.assert_array_equal(scores.logprobs, expected.logprobs)
        np.testing.assert_array_equal(scores.support_logprobs, expected.support_logprobs)
    np.testing.assert_array_equal(group.head(), after.head())


def test_two_handles_score_as_one_and_keep_reason_codes_and_deadlines(tmp_path, monkeypatch):
    model_folder = build_model(tmp_path / "model", tied=False)
    snapshots = publish(tmp_path / "s", model_folder, 3)
    group = _group(model_folder, 2)
    group.begin_stage(EMA, anchor="base", update=0)
    assert group.follow(1, snapshots[0]).teacher_version == 1
    plain = TeacherScorer(model_folder)
    plain.begin_stage(EMA, anchor="base", update=0)
    plain.follow(1, snapshots[0])
    asked = requests(7)
    scores = group.score(asked, temperature=1.0, hidden=True)
    assert [score.rollout_id for score in scores] == [request.rollout_id for request in asked]
    for one, other in zip(scores, plain.score(asked, temperature=1.0, hidden=True), strict=True):
        np.testing.assert_allclose(one.hidden, other.hidden, atol=2e-5)
    assert len(group.score(asked[:1], temperature=1.0)) == 1  # fewer requests than handles

    with pytest.raises(TeacherError) as caught:
        group.follow(3, snapshots[2])
    assert caught.value.reason == "teacher_stale" and caught.value.details == {"teacher_version": 1, "update": 3}

    TeacherGroup(group.handles[:1]).follow(2, snapshots[1])  # one handle runs ahead
    with pytest.raises(TeacherError) as caught:
        group.begin_stage(EMA, anchor="keep")
    assert caught.value.reason == "teacher_diverged"

    monkeypatch.setattr(group_module, "FOLLOW_DEADLINE_S", 0.0)
    with pytest.raises(TeacherError) as caught:
        group.follow(3, snapshots[2])
    assert caught.value.reason == "teacher_lost"
