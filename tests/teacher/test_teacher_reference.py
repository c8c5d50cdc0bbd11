"""The reference: frozen, beside a teacher or alone, and never moved by what the teacher follows."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.torch import load_file
from tiny_teacher import build_model, float64_average, largest_difference, policy_tensors, publish, requests

from cluster.errors import TeacherError
from cluster.spec.teachers import EmaTeacher, FrozenTeacher
from services.teacher.scorer import TeacherScorer

EMA = EmaTeacher(update_rate=0.5)


@pytest.fixture
def model_folder(tmp_path):
    return build_model(tmp_path / "model", tied=True)


@pytest.fixture
def snapshots(model_folder, tmp_path):
    return publish(tmp_path / "snapshots", model_folder, 5, step=0.05)


def _arrays(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _logprobs(scorer, method="reference_logprobs") -> np.ndarray:
    return np.concatenate([scores.logprobs for scores in getattr(scorer, method)(requests(6), temperature=0.9)])


def test_a_reference_alone_needs_no_teacher(model_folder, snapshots):
    scorer = TeacherScorer(model_folder)
    assert scorer.begin_reference(anchor="base", update=7).teacher_version == 0
    assert scorer.set_names == ("reference",)  # the base model is held once
    expected = _logprobs(TeacherScorer(model_folder), "score")
    np.testing.assert_array_equal(_logprobs(scorer), expected)
    scores = scorer.reference_logprobs(requests(1), temperature=1.0)[0]
    assert (scores.teacher_version, scores.support_ids, scores.hidden, scores.full_logprobs, scores.entropies) == (0, None, None, None, None)
    scorer.begin_reference(anchor="policy", snapshot=snapshots[2], update=3)
    assert {one.teacher_version for one in scorer.reference_logprobs(requests(2), temperature=1.0)} == {3}
    assert np.abs(_logprobs(scorer) - expected).max() > 0.05


@pytest.mark.parametrize("reference_first", [True, False])
def test_teacher_and_reference_at_once_do_not_touch_each_other(model_folder, snapshots, reference_first):
    scorer = TeacherScorer(model_folder)
    if reference_first:
        scorer.begin_reference(anchor="policy", snapshot=snapshots[0], update=1)
    scorer.begin_stage(EMA, anchor="base", update=1)
    if not reference_first:
        scorer.begin_reference(anchor="policy", snapshot=snapshots[0], update=1)
    before = _logprobs(scorer)
    for update in (2, 3):
        scorer.follow(update, snapshots[update - 1])
    np.testing.assert_array_equal(_logprobs(scorer), before)
    assert largest_difference(scorer.weights("reference"), _arrays(load_file(snapshots[0]))) == 0.0
    assert largest_difference(scorer.weights("own"), float64_average(policy_tensors(model_folder), snapshots[1:3], 0.5)) < 1e-6
    assert {one.teacher_version for one in scorer.score(requests(1), temperature=1.0)} == {3}
    assert {one.teacher_version for one in scorer.reference_logprobs(requests(1), temperature=1.0)} == {1}


def test_anchors_across_stages(model_folder, snapshots):
    scorer, base = TeacherScorer(model_folder), _arrays(policy_tensors(model_folder))
    scorer.begin_reference(anchor="keep", update=2)  # nothing to keep yet: the base model
    assert largest_difference(scorer.weights("reference"), base) == 0.0
    scorer.begin_reference(anchor="policy", snapshot=snapshots[2], update=3)
    assert scorer.begin_reference(anchor="keep", update=5).teacher_version == 3
    assert largest_difference(scorer.weights("reference"), _arrays(load_file(snapshots[2]))) == 0.0
    assert scorer.begin_reference(anchor="base", update=5).teacher_version == 0
    assert largest_difference(scorer.weights("reference"), base) == 0.0
    with pytest.raises(ValueError, match="snapshot"):
        scorer.begin_reference(anchor="policy", update=5)


def test_a_resumed_stage_needs_its_restored_reference(model_folder, snapshots):
    scorer = TeacherScorer(model_folder)
    with pytest.raises(TeacherError, match="not restored") as caught:
        scorer.begin_reference(anchor="resume", update=4)
    assert caught.value.reason == "teacher_stale"
    with pytest.raises(TeacherError, match="before a stage"):
        scorer.reference_logprobs(requests(1), temperature=1.0)
    scorer.begin_reference(anchor="policy", snapshot=snapshots[3], update=4)
    for anchor in ("resume", "keep"):  # the learner went back to update 2, the reference did not
        with pytest.raises(TeacherError, match="update 2"):
            scorer.begin_reference(anchor=anchor, update=2)
    assert scorer.begin_reference(anchor="keep", update=0).teacher_version == 0  # the policy began again


@pytest.mark.parametrize("teacher", [None, EMA, FrozenTeacher()], ids=["alone", "ema", "frozen"])
def test_save_and_load_bring_the_reference_back(model_folder, snapshots, tmp_path, teacher):
    first = TeacherScorer(model_folder)
    first.begin_reference(anchor="policy", snapshot=snapshots[1], update=2)
    if teacher is not None:
        first.begin_stage(teacher, anchor="base", update=2)
        first.follow(3, snapshots[2])
    first.save(tmp_path / "teacher")
    files = {path.name for path in (tmp_path / "teacher").iterdir()}
    assert files == {"teacher.json", "reference.safetensors"} | ({"own.safetensors"} if teacher else set())
    second = TeacherScorer(model_folder)
    second.load(tmp_path / "teacher")
    assert set(second.set_names) == set(first.set_names)
    assert second.begin_reference(anchor="resume", update=3).teacher_version == 2
    np.testing.assert_array_equal(_logprobs(second), _logprobs(first))
    if teacher is not None:
        second.begin_stage(teacher, anchor="resume", update=3)
        np.testing.assert_array_equal(_logprobs(second, "score"), _logprobs(first, "score"))


def test_a_checkpoint_without_a_reference_takes_it_away(model_folder, snapshots, tmp_path):
    TeacherScorer(model_folder).save(tmp_path / "teacher")
    scorer = TeacherScorer(model_folder)
    scorer.begin_reference(anchor="policy", snapshot=snapshots[1], update=2)
    scorer.load(tmp_path / "teacher")
    assert scorer.set_names == ("own",)
    assert largest_difference(scorer.weights(), _arrays(policy_tensors(model_folder))) == 0.0
