"""How each kind's own weights begin and move, against float64 closed forms, across stages and restarts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_teacher import build_model, float64_average, largest_difference, policy_tensors, publish, requests, save_tokenizer

from cluster.errors import TeacherError
from cluster.spec.teachers import (
    EmaTeacher,
    ExternalTeacher,
    FrozenTeacher,
    InitialBlend,
    LiveTeacher,
    MixTeacher,
    PerDomainTeacher,
    RestartAndFreezeTeacher,
    TrustRegionTeacher,
)
from services.teacher.canary import TeacherCanary
from services.teacher.scorer import TeacherScorer
from services.teacher.strategies import Moment, average, jump
from services.weights.checkpoints import CheckpointError

EMA = EmaTeacher(update_rate=0.05)
RESTART = RestartAndFreezeTeacher(period=3, gamma=0.4)


@pytest.fixture
def model_folder(tmp_path):
    return build_model(tmp_path / "model", tied=False)


@pytest.fixture
def snapshots(model_folder, tmp_path):
    return publish(tmp_path / "snapshots", model_folder, 10)


def _arrays(tensors) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _begun(folder, spec, **options) -> TeacherScorer:
    scorer = TeacherScorer(folder, **options)
    scorer.begin_stage(spec, anchor="base", update=0)
    return scorer


# -- restart and freeze ----------------------------------------------------------------------------------------------


def test_restart_jumps_every_period_and_is_frozen_in_between(model_folder, snapshots):
    scorer, base = _begun(model_folder, RESTART), policy_tensors(model_folder)
    for update, path in enumerate(snapshots, start=1):
        assert scorer.follow(update, path).follows == update
        jumps = [snapshots[index - 1] for index in range(3, update + 1, 3)]
        assert largest_difference(scorer.weights(), float64_average(base, jumps, 0.4)) < 1e-6
    without_the_last = float64_average(base, [snapshots[2], snapshots[5]], 0.4)
    assert largest_difference(scorer.weights(), without_the_last) > 1e-3


def test_a_new_stage_counts_its_batches_anew(model_folder, snapshots):
    scorer = _begun(model_folder, RESTART)
    for update in (1, 2):
        scorer.follow(update, snapshots[update - 1])
    before = {name: tensor.clone() for name, tensor in scorer.weights().items()}
    assert scorer.begin_stage(RESTART, anchor="keep", update=2).follows == 0
    for update in (3, 4):
        scorer.follow(update, snapshots[update - 1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in scorer.weights().items())
    scorer.follow(5, snapshots[4])
    assert largest_difference(scorer.weights(), float64_average(before, snapshots[4:5], 0.4)) < 1e-6


def test_a_batch_of_several_steps_counts_once_and_the_same_update_not_again(model_folder, snapshots):
    scorer = _begun(model_folder, RESTART)
    assert [scorer.follow(update, snapshots[update - 1], after=update - 2).follows for update in (2, 4, 4)] == [1, 2, 2]
    with pytest.raises(TeacherError) as caught:
        scorer.follow(6, snapshots[5])  # the teacher is at 4, not at 5
    assert caught.value.reason == "teacher_stale"
    scorer.follow(6, snapshots[5], after=4)
    assert largest_difference(scorer.weights(), float64_average(policy_tensors(model_folder), snapshots[5:6], 0.4)) < 1e-6


@settings(max_examples=50, deadline=None)
@given(period=st.integers(1, 40), gamma=st.floats(0.01, 0.95), periods=st.integers(1, 4))
def test_restart_of_a_constant_policy_is_the_equivalent_average(period, gamma, periods):
    """T9: after whole periods both hold the policy's share 1 - (1 - a)^n, with n follows of the equivalent rate a."""
    spec = RestartAndFreezeTeacher(period=period, gamma=gamma)
    rate = spec.equivalent_update_rate
    jumping, averaging = ({"w": torch.zeros(2, dtype=torch.float64)} for _ in range(2))
    policy = {"w": torch.ones(2, dtype=torch.float64)}
    for follows in range(1, period * periods + 1):
        jump(jumping, policy, spec, Moment(follows=follows))
        average(averaging, policy, EmaTeacher(update_rate=rate), Moment(follows=follows))
    share = 1.0 - (1.0 - rate) ** (period * periods)
    assert share == pytest.approx(1.0 - (1.0 - gamma) ** periods, rel=1e-9)
    assert jumping["w"].tolist() == pytest.approx([share] * 2, rel=1e-9)
    assert averaging["w"].tolist() == pytest.approx([share] * 2, rel=1e-9)


def test_the_papers_gamma_is_an_average_of_one_percent_over_fifty_steps():
    """Restart with gamma 40 % stands for EMA 1 % over a stage of 50 steps (39.5 %)."""
    gamma = 1.0 - 0.99**50
    assert gamma == pytest.approx(0.395, abs=5e-4)
    assert RestartAndFreezeTeacher(period=50, gamma=gamma).equivalent_update_rate == pytest.approx(0.01, rel=1e-9)


# -- averages per optimizer step -------------------------------------------------------------------------------------


def test_an_average_per_optimizer_step_is_not_the_shortcut_with_the_last_policy(model_folder, snapshots):
    """Two batches of five steps. 1 - (1 - r)^5 of the last policy alone is another teacher; so is one average a batch."""
    per_step, per_batch = EmaTeacher(update_rate=0.2, every="optimizer_step"), EmaTeacher(update_rate=0.2)
    stepwise, batchwise, base = _begun(model_folder, per_step), _begun(model_folder, per_batch), policy_tensors(model_folder)
    for update, path in enumerate(snapshots, start=1):
        stepwise.follow(update, path, ends_batch=update % 5 == 0)
        if update % 5 == 0:
            batchwise.follow(update, path, after=update - 5)
    last = [snapshots[4], snapshots[9]]
    assert largest_difference(stepwise.weights(), float64_average(base, snapshots, 0.2)) < 1e-6
    assert largest_difference(batchwise.weights(), float64_average(base, last, 0.2)) < 1e-6
    shortcut = float64_average(base, last, 1.0 - 0.8**5)
    assert largest_difference(stepwise.weights(), shortcut) > 1e-3
    of_a_constant = float64_average(base, [snapshots[9]] * 5, 0.2)  # for a policy that stands still they are the same
    assert largest_difference({n: torch.from_numpy(a) for n, a in of_a_constant.items()}, float64_average(base, snapshots[9:], 1.0 - 0.8**5)) < 1e-12


def test_only_per_step_teachers_move_inside_a_batch(model_folder, snapshots):
    spec = PerDomainTeacher(
        teachers={"a": EmaTeacher(update_rate=0.2, every="optimizer_step"), "b": EmaTeacher(update_rate=0.2), "c": RestartAndFreezeTeacher(period=1)}
    )
    scorer, base = _begun(model_folder, spec), policy_tensors(model_folder)
    assert scorer.follow(1, snapshots[0], ends_batch=False).follows == 0
    assert largest_difference(scorer.weights("own/a"), float64_average(base, snapshots[:1], 0.2)) < 1e-6
    for name in ("own/b", "own/c"):
        assert largest_difference(scorer.weights(name), _arrays(base)) == 0.0
    assert scorer.follow(2, snapshots[1]).follows == 1
    assert largest_difference(scorer.weights("own/a"), float64_average(base, snapshots[:2], 0.2)) < 1e-6
    assert largest_difference(scorer.weights("own/b"), float64_average(base, snapshots[1:2], 0.2)) < 1e-6
    assert largest_difference(scorer.weights("own/c"), float64_average(base, snapshots[1:2], 0.4)) < 1e-6


# -- where a teacher begins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchor", ["base", "policy"])
def test_an_initial_blend_is_the_share_of_the_checkpoint(model_folder, snapshots, tmp_path, anchor):
    other = build_model(tmp_path / "other", tied=False, seed=9)
    scorer = TeacherScorer(model_folder)
    spec = EmaTeacher(update_rate=0.05, initial=InitialBlend(path=str(other), share=0.6))
    scorer.begin_stage(spec, anchor=anchor, snapshot=snapshots[4], update=5)
    start = policy_tensors(model_folder) if anchor == "base" else load_file(snapshots[4])
    expected = {name: 0.6 * tensor.double().numpy() + 0.4 * start[name].double().numpy() for name, tensor in policy_tensors(other).items()}
    assert largest_difference(scorer.weights(), expected) < 1e-7
    scorer.begin_stage(spec, anchor="keep", update=5)  # kept is kept: not blended a second time
    assert largest_difference(scorer.weights(), expected) < 1e-7


def test_a_blend_of_share_one_is_the_checkpoint_and_another_architecture_is_refused(model_folder, tmp_path):
    other = build_model(tmp_path / "other", tied=False, seed=9)
    scorer = _begun(model_folder, FrozenTeacher(initial=InitialBlend(path="elsewhere")), external_folders={"elsewhere": str(other)})
    assert largest_difference(scorer.weights(), _arrays(policy_tensors(other))) == 0.0
    wide = build_model(tmp_path / "wide", tied=False, hidden=48)
    with pytest.raises(TeacherError, match="embed_tokens") as caught:
        _begun(model_folder, FrozenTeacher(initial=InitialBlend(path=str(wide))))
    assert caught.value.reason == "teacher_architecture"


@pytest.mark.parametrize("spec", [TrustRegionTeacher(mix=0.3), MixTeacher(weight=0.3)], ids=lambda spec: spec.kind)
def test_the_anchor_never_moves_with_the_policy(model_folder, snapshots, spec):
    scorer = TeacherScorer(model_folder)
    scorer.begin_stage(spec, anchor="policy", snapshot=snapshots[0], update=1)
    for update in range(2, 8):
        scorer.follow(update, snapshots[update - 1])
    assert largest_difference(scorer.weights("own"), _arrays(load_file(snapshots[0]))) == 0.0
    assert largest_difference(scorer.weights("policy"), _arrays(load_file(snapshots[6]))) == 0.0
    pointers = [{t.untyped_storage().data_ptr() for t in scorer.weights(name).values()} for name in ("own", "policy")]
    assert not pointers[0] & pointers[1]


def test_a_live_part_is_the_current_policy_whatever_the_anchor(model_folder, snapshots):
    scorer = TeacherScorer(model_folder)
    scorer.begin_stage(LiveTeacher(), anchor="base", snapshot=snapshots[3], update=4)
    assert largest_difference(scorer.weights("policy"), _arrays(load_file(snapshots[3]))) == 0.0


def test_only_the_sets_that_a_stage_scores_with_are_held(model_folder, snapshots):
    scorer = TeacherScorer(model_folder)
    held = {}
    for name, spec in {
        "frozen": FrozenTeacher(),
        "live": LiveTeacher(),
        "no policy": TrustRegionTeacher(mix=0.0),
        "no anchor": TrustRegionTeacher(mix=1.0),
        "both": TrustRegionTeacher(mix=0.5),
        "by domain": PerDomainTeacher(teachers={"a": LiveTeacher(), "b": TrustRegionTeacher(), "c": LiveTeacher()}),
    }.items():
        scorer.begin_stage(spec, anchor="policy", snapshot=snapshots[0], update=1)
        held[name] = set(scorer.set_names)
    assert held == {
        "frozen": {"own"},
        "live": {"policy"},
        "no policy": {"own"},
        "no anchor": {"policy"},
        "both": {"own", "policy"},
        "by domain": {"own/b", "policy"},
    }


# -- stages --------------------------------------------------------------------------------------------------------


def test_what_keep_continues(model_folder, snapshots):
    base, scorer = policy_tensors(model_folder), _begun(model_folder, EMA)
    scorer.follow(1, snapshots[0])
    kept = float64_average(base, snapshots[:1], 0.05)
    two = PerDomainTeacher(teachers={"a": EMA, "b": FrozenTeacher()})
    scorer.begin_stage(two, anchor="keep", update=1)  # both go on from the one teacher
    assert set(scorer.set_names) == {"own/a", "own/b"}
    scorer.follow(2, snapshots[1])
    assert largest_difference(scorer.weights("own/a"), float64_average(base, snapshots[:2], 0.05)) < 1e-6
    assert largest_difference(scorer.weights("own/b"), kept) < 1e-6
    scorer.begin_stage(PerDomainTeacher(teachers={"b": EMA}), anchor="keep", update=2)
    assert largest_difference(scorer.weights("own/b"), kept) < 1e-6
    with pytest.raises(TeacherError, match="none of own/new") as caught:
        scorer.begin_stage(PerDomainTeacher(teachers={"b": EMA, "new": FrozenTeacher()}), anchor="keep", update=2)
    assert caught.value.reason == "teacher_stale"
    with pytest.raises(TeacherError, match="re_anchor") as caught:
        scorer.begin_stage(EMA, anchor="keep", update=2)
    assert caught.value.reason == "teacher_stale"


def test_keep_after_a_live_teacher_is_its_last_policy(model_folder, snapshots):
    scorer = _begun(model_folder, LiveTeacher())
    scorer.follow(3, snapshots[2])
    scorer.begin_stage(EMA, anchor="keep", snapshot=snapshots[5], update=6)  # stages without a teacher came between
    assert largest_difference(scorer.weights(), _arrays(load_file(snapshots[2]))) == 0.0
    assert scorer.set_names == ("own",)


def test_a_live_teacher_replaces_what_was_kept(model_folder, snapshots):
    scorer = _begun(model_folder, EMA)
    scorer.follow(1, snapshots[0])
    scorer.begin_stage(LiveTeacher(), anchor="keep", snapshot=snapshots[0], update=1)
    assert scorer.set_names == ("policy",)
    scorer.follow(2, snapshots[1])
    scorer.begin_stage(EMA, anchor="keep", snapshot=snapshots[1], update=2)
    assert largest_difference(scorer.weights(), _arrays(load_file(snapshots[1]))) == 0.0


def test_keep_reaches_over_an_external_teacher(model_folder, snapshots, tmp_path):
    policy, other = save_tokenizer(model_folder), save_tokenizer(build_model(tmp_path / "other", tied=True, seed=3))
    scorer = _begun(policy, EMA, external_folders={"other": str(other)})
    scorer.follow(1, snapshots[0])
    canary, external = TeacherCanary(), ExternalTeacher(path="other")
    canary.restart(external, scorer.begin_stage(external, anchor="keep", snapshot=snapshots[0], update=1))
    canary.observe(scorer.follow(2, snapshots[1]), snapshots[1])
    assert set(scorer.set_names) == {"own", "external/other"}
    scorer.begin_stage(EMA, anchor="keep", update=2)
    assert largest_difference(scorer.weights(), float64_average(policy_tensors(model_folder), snapshots[:1], 0.05)) < 1e-6


# -- save and load -------------------------------------------------------------------------------------------------


STAGES = [
    RESTART,
    EmaTeacher(update_rate=0.3),
    TrustRegionTeacher(mix=0.3),
    MixTeacher(weight=0.7),
    LiveTeacher(),
    PerDomainTeacher(teachers={"a": EMA, "b": RESTART, "c": TrustRegionTeacher(mix=0.5)}),
]


@pytest.mark.parametrize("spec", STAGES, ids=lambda spec: spec.kind)
def test_a_restored_teacher_continues_exactly_in_the_middle_of_a_stage(model_folder, snapshots, tmp_path, spec):
    """Saved after update 4: between two jumps of period 3, whose next must come at update 6."""
    whole, first = _begun(model_folder, spec), _begun(model_folder, spec)
    for update in range(1, 9):
        whole.follow(update, snapshots[update - 1])
        if update <= 4:
            first.follow(update, snapshots[update - 1])
    first.save(tmp_path / "teacher")
    second, canary = TeacherScorer(model_folder), TeacherCanary()
    assert second.load(tmp_path / "teacher").follows == 4
    canary.restart(spec, second.begin_stage(spec, anchor="resume", snapshot=snapshots[3], update=4))
    for update in range(5, 9):
        canary.observe(second.follow(update, snapshots[update - 1]), snapshots[update - 1])
    assert set(second.set_names) == set(whole.set_names)
    for name in whole.set_names:
        assert all(torch.equal(tensor, second.weights(name)[key]) for key, tensor in whole.weights(name).items())
    if "own/a" not in whole.set_names:
        asked = requests(3)
        for one, other in zip(whole.score(asked, temperature=1.0), second.score(asked, temperature=1.0), strict=True):
            np.testing.assert_array_equal(one.logprobs, other.logprobs)


def test_a_resumed_stage_needs_every_set_of_its_teachers(model_folder, snapshots, tmp_path):
    scorer = _begun(model_folder, PerDomainTeacher(teachers={"a": EMA}))
    scorer.save(tmp_path / "teacher")
    restored = TeacherScorer(model_folder)
    restored.load(tmp_path / "teacher")
    with pytest.raises(TeacherError, match="own/b") as caught:
        restored.begin_stage(PerDomainTeacher(teachers={"a": EMA, "b": EMA}), anchor="resume", update=0)
    assert caught.value.reason == "teacher_stale"


def test_a_state_of_another_format_is_refused(model_folder, tmp_path):
    scorer = _begun(model_folder, EMA)
    scorer.save(tmp_path / "teacher")
    record = tmp_path / "teacher" / "teacher.json"
    record.write_text(record.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(CheckpointError, match="format 1"):
        scorer.load(tmp_path / "teacher")


def test_an_external_teacher_saves_no_weights_and_resumes(tmp_path, snapshots, model_folder):
    policy, other = save_tokenizer(model_folder), save_tokenizer(build_model(tmp_path / "other", tied=True, seed=3))
    spec, folders = ExternalTeacher(path="other"), {"other": str(other)}
    scorer = _begun(policy, spec, external_folders=folders)
    scorer.follow(3, snapshots[2])
    scorer.save(tmp_path / "teacher")
    assert [path.name for path in (tmp_path / "teacher").iterdir()] == ["teacher.json"]
    restored = TeacherScorer(policy, external_folders=folders)
    restored.load(tmp_path / "teacher")
    restored.begin_stage(spec, anchor="resume", update=3)
    for one, other_scores in zip(scorer.score(requests(2), temperature=1.0), restored.score(requests(2), temperature=1.0), strict=True):
        np.testing.assert_array_equal(one.logprobs, other_scores.logprobs)
