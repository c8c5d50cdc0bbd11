"""The teacher's weights against float64 recomputation from the published snapshots."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_teacher import build_model, float64_average, largest_difference, policy_tensors, publish

from cluster.errors import TeacherError, WeightTransferError
from cluster.spec.teachers import EmaTeacher, FrozenTeacher, LiveTeacher
from services.teacher.scorer import TeacherScorer
from services.teacher.strategies import Moment, average
from services.weights.checkpoints import CheckpointError

EMA = EmaTeacher(update_rate=0.05)


@pytest.fixture(params=["tied", "untied"])
def model_folder(request, tmp_path):
    return build_model(tmp_path / "model", tied=request.param == "tied")


@pytest.fixture
def snapshots(model_folder, tmp_path):
    return publish(tmp_path / "snapshots", model_folder, 10)


def _follow_all(scorer: TeacherScorer, snapshots, *, first: int = 1) -> None:
    for update, path in enumerate(snapshots, start=first):
        scorer.follow(update, path)


def test_ema_equals_the_float64_average_of_ten_snapshots(model_folder, snapshots):
    scorer = TeacherScorer(model_folder)
    scorer.begin_stage(EMA, anchor="base", update=0)
    _follow_all(scorer, snapshots)
    start = policy_tensors(model_folder)
    assert scorer.teacher_version == 10
    assert largest_difference(scorer.weights(), float64_average(start, snapshots, 0.05)) < 1e-6
    assert largest_difference(scorer.weights(), {n: t.numpy() for n, t in start.items()}) > 1e-3


def test_the_same_in_bfloat16_would_not_be_the_average(model_folder, snapshots):
    """What a bf16 teacher would do: a test that it passes too proves nothing."""
    start = policy_tensors(model_folder)
    state = {name: tensor.to(torch.bfloat16) for name, tensor in start.items()}
    for path in snapshots:
        policy = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}
        average(state, policy, EMA, Moment())
    expected = float64_average(start, snapshots, 0.05)
    assert largest_difference({n: t.float() for n, t in state.items()}, expected) > 1e-4


@pytest.mark.parametrize("updates", [1, 7])
def test_share_of_a_constant_policy_is_the_closed_form(updates):
    teacher = {"w": torch.zeros(3)}
    for _ in range(updates):
        average(teacher, {"w": torch.ones(3)}, EmaTeacher(update_rate=0.25), Moment())
    assert teacher["w"].tolist() == pytest.approx([1 - 0.75**updates] * 3, abs=1e-6)


def test_frozen_stays_and_live_copies(model_folder, snapshots):
    last = load_file(snapshots[-1])
    base = {name: tensor.numpy() for name, tensor in policy_tensors(model_folder).items()}
    frozen, live = TeacherScorer(model_folder), TeacherScorer(model_folder)
    frozen.begin_stage(FrozenTeacher(), anchor="base", update=0)
    live.begin_stage(LiveTeacher(), anchor="base", update=0)
    for scorer in (frozen, live):
        scorer.follow(3, snapshots[2])  # these may skip
        scorer.follow(10, snapshots[-1])
    assert largest_difference(frozen.weights(), base) == 0.0
    assert largest_difference(live.weights("policy"), {n: t.numpy() for n, t in last.items()}) == 0.0
    assert frozen.teacher_version == live.teacher_version == 10


def test_update_rate_one_is_live_and_the_policy_is_never_written(model_folder, snapshots):
    before = snapshots[0].read_bytes()
    scorer = TeacherScorer(model_folder)
    scorer.begin_stage(EmaTeacher(update_rate=1.0), anchor="policy", snapshot=snapshots[1], update=0)
    scorer.follow(1, snapshots[0])
    assert largest_difference(scorer.weights(), {n: t.numpy() for n, t in load_file(snapshots[0]).items()}) == 0.0
    assert snapshots[0].read_bytes() == before


def test_follow_is_idempotent_by_update_number(model_folder, snapshots):
    scorer = TeacherScorer(model_folder)
    scorer.begin_stage(EMA, anchor="base", update=0)
    first = scorer.follow(1, snapshots[0])
    again = scorer.follow(1, snapshots[0])
    assert again.teacher_version == first.teacher_version == 1
    assert all(np.array_equal(again.canary[name], first.canary[name]) for name in first.canary)
    assert largest_difference(scorer.weights(), float64_average(policy_tensors(model_folder), snapshots[:1], 0.05)) < 1e-6


@pytest.mark.parametrize("update", [3, 0])
def test_a_skipped_or_older_publication_is_stale(model_folder, snapshots, update):
    scorer = TeacherScorer(model_folder)
    scorer.begin_stage(EMA, anchor="base", update=0)
    scorer.follow(1, snapshots[0])
    with pytest.raises(TeacherError) as caught:
        scorer.follow(update, snapshots[2])
    assert caught.value.reason == "teacher_stale"
    assert scorer.teacher_version == 1


@pytest.mark.parametrize("fault", ["bfloat16", "missing", "unknown", "shape"])
def test_a_snapshot_that_is_not_the_masters_is_refused_whole(model_folder, snapshots, fault, tmp_path):
    tensors = load_file(snapshots[0])
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {"bfloat16": tensors[name].bfloat16(), "missing": None, "unknown": tensors[name].clone(), "shape": tensors[name][:3].clone()}
    tensors["model.extra.weight" if fault == "unknown" else name] = changes[fault]
    path = tmp_path / "wrong.safetensors"
    save_file({key: value for key, value in tensors.items() if value is not None}, path)
    scorer = TeacherScorer(model_folder)
    scorer.begin_stage(EMA, anchor="base", update=0)
    before = {n: t.clone() for n, t in scorer.weights().items()}
    with pytest.raises(WeightTransferError) as caught:
        scorer.follow(1, path)
    assert caught.value.reason == "publication_incomplete"
    assert all(torch.equal(before[n], t) for n, t in scorer.weights().items())


def test_save_and_load_continue_exactly(model_folder, snapshots, tmp_path):
    whole, first = TeacherScorer(model_folder), TeacherScorer(model_folder)
    for scorer in (whole, first):
        scorer.begin_stage(EMA, anchor="base", update=0)
    _follow_all(whole, snapshots)
    _follow_all(first, snapshots[:4])
    first.save(tmp_path / "teacher")
    second = TeacherScorer(model_folder)
    assert second.load(tmp_path / "teacher").teacher_version == 4
    second.begin_stage(EMA, anchor="resume", update=4)
    _follow_all(second, snapshots[4:], first=5)
    assert all(torch.equal(tensor, second.weights()[name]) for name, tensor in whole.weights().items())
    assert second.teacher_version == 10


def test_resume_without_the_restored_teacher_is_stale(model_folder, snapshots):
    scorer = TeacherScorer(model_folder)
    with pytest.raises(TeacherError, match="not restored") as caught:
        scorer.begin_stage(EMA, anchor="resume", update=4)
    assert caught.value.reason == "teacher_stale"
    scorer.begin_stage(EMA, anchor="base", update=0)
    _follow_all(scorer, snapshots[:6])
    for anchor in ("resume", "keep"):  # the learner went back to update 4, the teacher did not
        with pytest.raises(TeacherError) as caught:
            scorer.begin_stage(EMA, anchor=anchor, update=4)
        assert caught.value.reason == "teacher_stale"


def test_anchors_across_stages(model_folder, snapshots):
    scorer = TeacherScorer(model_folder)
    base = {name: tensor.numpy() for name, tensor in policy_tensors(model_folder).items()}
    scorer.begin_stage(EMA, anchor="keep", update=2)  # the stages before had no teacher: it still is the base model
    assert largest_difference(scorer.weights(), base) == 0.0
    scorer.follow(3, snapshots[2])
    kept = {name: tensor.clone() for name, tensor in scorer.weights().items()}
    scorer.begin_stage(FrozenTeacher(), anchor="keep", update=3)
    assert all(torch.equal(tensor, scorer.weights()[name]) for name, tensor in kept.items())
    scorer.begin_stage(EMA, anchor="policy", snapshot=snapshots[6], update=7)
    assert largest_difference(scorer.weights(), {n: t.numpy() for n, t in load_file(snapshots[6]).items()}) == 0.0
    scorer.begin_stage(EMA, anchor="base", update=7)
    assert largest_difference(scorer.weights(), base) == 0.0 and scorer.teacher_version == 7
    scorer.begin_stage(EMA, anchor="keep", update=0)  # the policy began again from the base model
    assert scorer.teacher_version == 0


def test_a_teacher_that_was_never_anchored_saves_and_loads(model_folder, tmp_path):
    TeacherScorer(model_folder).save(tmp_path / "teacher")
    assert not (tmp_path / "teacher" / "own.safetensors").exists()
    scorer = TeacherScorer(model_folder)
    scorer.begin_stage(EMA, anchor="base", update=0)
    scorer.weights()["model.norm.weight"].mul_(2.0)
    scorer.load(tmp_path / "teacher")
    assert torch.equal(scorer.weights()["model.norm.weight"], torch.ones(32))


def test_a_damaged_or_foreign_state_is_refused(model_folder, tmp_path):
    scorer = TeacherScorer(model_folder)
    scorer.begin_stage(EMA, anchor="base", update=0)
    scorer.save(tmp_path / "teacher")
    tensors = load_file(tmp_path / "teacher" / "own.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "teacher" / "own.safetensors")
    for folder in (tmp_path / "teacher", tmp_path / "nothing"):
        with pytest.raises(CheckpointError) as caught:
            scorer.load(folder)
        assert caught.value.reason == "checkpoint_damaged"


def test_bfloat16_scoring_keeps_float32_weights(model_folder, snapshots):
    scorer = TeacherScorer(model_folder, dtype="bfloat16")
    scorer.begin_stage(EMA, anchor="base", update=0)
    _follow_all(scorer, snapshots)
    assert largest_difference(scorer.weights(), float64_average(policy_tensors(model_folder), snapshots, 0.05)) < 1e-6
    name = "model.layers.0.mlp.up_proj.weight"
    scored_with = scorer._stage.sets["own"].parameters[name]
    assert scored_with.dtype == torch.bfloat16
    assert torch.equal(scored_with, scorer.weights()[name].bfloat16())


def test_unknown_kind_names_what_is_allowed(model_folder):
    with pytest.raises(ValueError, match="ema"):
        TeacherScorer(model_folder).begin_stage(SimpleNamespace(kind="mean"), anchor="base")
