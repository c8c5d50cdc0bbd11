"""Real Ray: a killed teacher is replaced by one that continues exactly, and its errors keep their reason codes."""

from __future__ import annotations

import dataclasses
import os
import signal
import time

import numpy as np
import pytest
import ray
from tiny_teacher import build_model, float64_average, largest_difference, policy_tensors, publish, requests, save_tokenizer

from cluster.errors import TeacherError
from cluster.spec.teachers import EmaTeacher, ExternalTeacher, PerDomainTeacher, RestartAndFreezeTeacher
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


def _group(model_folder, num_teachers: int = 1, **options) -> TeacherGroup:
    return TeacherGroup.create(num_teachers, model_folder=str(model_folder), device="cpu", threads=1, **options)


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
    assert largest_difference(after.weights(), float64_average(policy_tensors(model_folder), snapshots, 0.05)) < 1e-6

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
    scores = group.score(asked, temperature=1.0, full="hidden")
    assert [score.rollout_id for score in scores] == [request.rollout_id for request in asked]
    for one, other in zip(scores, plain.score(asked, temperature=1.0, full="hidden"), strict=True):
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


def test_a_group_with_teachers_by_domain_an_external_model_and_a_reference(tmp_path):
    """The whole interface over the wire, killed in the middle of a restart's period, against one plain scorer."""
    policy = save_tokenizer(build_model(tmp_path / "policy", tied=True))
    other = save_tokenizer(build_model(tmp_path / "other", tied=False, seed=7, hidden=48), specials=("<end>", "<human>"))
    snapshots, folders = publish(tmp_path / "s", policy, 6, step=0.05), {"other": str(other)}
    spec = PerDomainTeacher(teachers={"a": ExternalTeacher(path="other"), "b": RestartAndFreezeTeacher(period=2, gamma=0.5)})
    asked = [dataclasses.replace(request, problem_id=f"{'ab'[i % 2]}/train/{i}") for i, request in enumerate(requests(6))]
    plain, first, canary = TeacherScorer(policy, external_folders=folders), _group(policy, external_folders=folders), TeacherCanary()
    for teacher in (plain, first):
        assert teacher.begin_reference(anchor="policy", snapshot=snapshots[0], update=1).teacher_version == 1
        follow = teacher.begin_stage(spec, anchor="base", snapshot=snapshots[0], update=1)
        assert (follow.follows, follow.masked_token_ids) == (0, {"a": {57}})
        assert teacher.follow(3, snapshots[2], after=1).follows == 1
    first.save(tmp_path / "teacher")
    ray.kill(first.handles[0])

    group = _group(policy, 2, external_folders=folders)
    group.load(tmp_path / "teacher")
    assert group.begin_reference(anchor="resume", update=3).teacher_version == 1
    canary.restart(spec, group.begin_stage(spec, anchor="resume", snapshot=snapshots[2], update=3))
    assert plain.follow(4, snapshots[3], ends_batch=False).follows == 1
    canary.observe(group.follow(4, snapshots[3], ends_batch=False), snapshots[3], ends_batch=False)
    for teacher in (plain, group):
        assert teacher.follow(5, snapshots[4]).follows == 2
    canary.observe(group.follow(5, snapshots[4]), snapshots[4])  # told twice, as after an answer that was lost
    for wanted in ({"top_k": 3, "join_sampled": True, "entropies": True}, {}):
        for one, expected in zip(group.score(asked, temperature=0.8, **wanted), plain.score(asked, temperature=0.8, **wanted), strict=True):
            assert (one.rollout_id, one.teacher_version) == (expected.rollout_id, 5)
            for field in ("logprobs", "support_ids", "support_logprobs", "entropies"):
                if getattr(expected, field) is None:
                    assert getattr(one, field) is None
                else:
                    np.testing.assert_allclose(getattr(one, field), getattr(expected, field), atol=2e-5)
    for one, expected in zip(group.reference_logprobs(asked, temperature=0.8), plain.reference_logprobs(asked, temperature=0.8), strict=True):
        np.testing.assert_allclose(one.logprobs, expected.logprobs, atol=2e-5)
        assert one.teacher_version == 1
    assert group.full_payload(10**6) == "logprobs"

    wrong = save_tokenizer(build_model(tmp_path / "wrong", tied=False, seed=8), first="x")
    refusing = _group(policy, external_folders={"other": str(wrong)})
    with pytest.raises(TeacherError, match="x0") as caught:
        refusing.begin_stage(ExternalTeacher(path="other"), anchor="base", update=0)
    assert caught.value.reason == "teacher_vocabulary"
    for handle in (*group.handles, *refusing.handles):
        ray.kill(handle)
