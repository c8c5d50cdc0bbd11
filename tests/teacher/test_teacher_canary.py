"""The canary passes an honest teacher of every kind, for long, and catches every dishonest one at its first update."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_teacher import build_model, publish, save_tokenizer

from cluster.errors import TeacherError
from cluster.spec.teachers import (
    EmaTeacher,
    ExternalTeacher,
    FrozenTeacher,
    LiveTeacher,
    MixTeacher,
    PerDomainTeacher,
    PolicySource,
    RestartAndFreezeTeacher,
    TrustRegionTeacher,
)
from cluster.transfer.snapshot import write_snapshot
from services.teacher.canary import OWN_SHARE, Follow, TeacherCanary, canary_of, canary_of_sets
from services.teacher.scorer import TeacherScorer
from services.teacher.strategies import STRATEGIES, Moment, average, blend
from services.teacher.weights import WeightSet

EMA = EmaTeacher(update_rate=0.05)


HALF = EmaTeacher(update_rate=0.5)
EVERY_KIND = [
    EMA,
    HALF,
    FrozenTeacher(),
    LiveTeacher(),
    RestartAndFreezeTeacher(period=3, gamma=0.4),
    TrustRegionTeacher(mix=0.3),
    ExternalTeacher(path="other"),
    MixTeacher(first=PolicySource(), second=ExternalTeacher(path="other"), weight=1.25),
    PerDomainTeacher(teachers={"a": EMA, "b": RestartAndFreezeTeacher(period=4, gamma=1.0), "c": TrustRegionTeacher(mix=0.5)}),
]


@pytest.fixture
def model_folder(tmp_path):
    return save_tokenizer(build_model(tmp_path / "model", tied=True))


@pytest.fixture
def scorer(model_folder, tmp_path):
    other = save_tokenizer(build_model(tmp_path / "other", tied=False, seed=5))
    return TeacherScorer(model_folder, external_folders={"other": str(other)})


def _observed(spec, updates) -> TeacherCanary:
    """A canary over (scorer, snapshots) pairs, started at the scorer's anchor."""
    scorer, snapshots = updates
    canary = TeacherCanary()
    canary.restart(spec, scorer.begin_stage(spec, anchor="base", update=0))
    for update, path in enumerate(snapshots, start=1):
        canary.observe(scorer.follow(update, path), path)
    return canary


@pytest.mark.parametrize("spec", EVERY_KIND, ids=lambda spec: spec.kind)
def test_an_honest_teacher_passes(model_folder, scorer, tmp_path, spec):
    snapshots = publish(tmp_path / "s", model_folder, 10, step=1e-5)
    assert _observed(spec, (scorer, snapshots)).max_relative_error < 1e-5


def test_every_kind_has_its_closed_form():
    assert set(OWN_SHARE) == set(STRATEGIES)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.3])
def test_rounding_of_many_updates_is_no_alarm(rate, tmp_path):
    """500 updates, the policy standing still for the last 300: a float32 average then stops short of it."""
    spec = EmaTeacher(update_rate=rate)
    generator = torch.Generator().manual_seed(0)
    policy = {f"t{i}": torch.randn(100, generator=generator) * scale for i, scale in enumerate([1.0, 0.02, 1e-4, 1e-8])}
    state = {name: tensor.clone() for name, tensor in policy.items()}
    canary = TeacherCanary()
    canary.restart(spec, Follow(teacher_version=0, canary=canary_of_sets({"own": state})))
    path = tmp_path
    for update in range(1, 501):
        if update <= 200:
            policy = {name: tensor + tensor.abs().mean() * 1e-3 * torch.randn(100, generator=generator) for name, tensor in policy.items()}
            path = write_snapshot(tmp_path, 1, policy.items())
        average(state, policy, spec, Moment())
        canary.observe(Follow(teacher_version=update, follows=update, canary=canary_of_sets({"own": state})), path)
    assert canary.max_relative_error > 0.0


def _in_bfloat16(teacher, policy, spec, moment) -> None:
    for name, tensor in teacher.items():
        rounded = {name: tensor.bfloat16()}
        average(rounded, {name: policy[name].bfloat16()}, spec, moment)
        tensor.copy_(rounded[name].float())


FAULTS = {
    "stopped": lambda teacher, policy, spec, moment: None,
    "wrong_rate": lambda teacher, policy, spec, moment: blend(teacher, policy, 0.06),
    "swapped_rate": lambda teacher, policy, spec, moment: blend(teacher, policy, 0.95),
    "twice": lambda teacher, policy, spec, moment: [blend(teacher, policy, 0.05) for _ in range(2)],
    "copied": lambda teacher, policy, spec, moment: blend(teacher, policy, 1.0),
    "bfloat16": _in_bfloat16,
    "not_finite": lambda teacher, policy, spec, moment: [tensor.fill_(float("nan")) for tensor in teacher.values()],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_dishonest_teacher_is_caught_at_once(model_folder, tmp_path, monkeypatch, fault):
    """With steps of 1e-5, a learning rate as in practice."""
    broken = dataclasses.replace(STRATEGIES["ema"], update=FAULTS[fault])
    snapshots = publish(tmp_path / "s", model_folder, 3, step=1e-5)
    scorer, canary = TeacherScorer(model_folder), TeacherCanary()
    canary.restart(EMA, scorer.begin_stage(EMA, anchor="base", update=0))
    canary.observe(scorer.follow(1, snapshots[0]), snapshots[0])
    monkeypatch.setitem(STRATEGIES, "ema", broken)
    with pytest.raises(TeacherError, match="ema") as caught:
        canary.observe(scorer.follow(2, snapshots[1]), snapshots[1])
    assert caught.value.reason == "teacher_diverged"
    assert caught.value.details["version"] == 2


@pytest.mark.parametrize("spec", [FrozenTeacher(), TrustRegionTeacher(mix=0.3), MixTeacher(weight=0.5)], ids=lambda spec: spec.kind)
def test_an_anchor_that_moves_is_caught(model_folder, tmp_path, monkeypatch, spec):
    moving = lambda teacher, policy, spec, moment: blend(teacher, policy, 1e-3)  # noqa: E731
    monkeypatch.setitem(STRATEGIES, spec.kind, dataclasses.replace(STRATEGIES[spec.kind], update=moving))
    with pytest.raises(TeacherError, match="own:model") as caught:
        _observed(spec, (TeacherScorer(model_folder), publish(tmp_path / "s", model_folder, 1)))
    assert caught.value.reason == "teacher_diverged"


@pytest.mark.parametrize("spec", [LiveTeacher(), TrustRegionTeacher(mix=0.3)], ids=lambda spec: spec.kind)
def test_a_policy_that_is_not_copied_is_caught(model_folder, tmp_path, monkeypatch, spec):
    snapshots = publish(tmp_path / "s", model_folder, 1, step=1e-5)
    scorer, canary = TeacherScorer(model_folder), TeacherCanary()
    canary.restart(spec, scorer.begin_stage(spec, anchor="base", update=0))
    monkeypatch.setattr(WeightSet, "adopt", lambda self, weights: blend(self.state, weights, 0.5))
    with pytest.raises(TeacherError, match="policy:model") as caught:
        canary.observe(scorer.follow(1, snapshots[0]), snapshots[0])
    assert caught.value.reason == "teacher_diverged"


def test_an_external_model_that_moves_is_caught(model_folder, scorer, tmp_path):
    spec, canary = ExternalTeacher(path="other"), TeacherCanary()
    (snapshot,) = publish(tmp_path / "s", model_folder, 1)
    canary.restart(spec, scorer.begin_stage(spec, anchor="policy", snapshot=snapshot, update=0))
    scorer.weights("external/other")["model.norm.weight"].mul_(1.0 + 1e-5)
    with pytest.raises(TeacherError, match=r"external/other:model\.norm\.weight"):
        canary.observe(scorer.follow(1, snapshot), snapshot)


def test_a_jump_at_the_wrong_batch_is_caught(model_folder, tmp_path, monkeypatch):
    """The third follow of period 3 must jump, and the second must not; a count that was lost shows by itself."""
    spec = RestartAndFreezeTeacher(period=3, gamma=0.4)
    snapshots = publish(tmp_path / "s", model_folder, 3)
    scorer, canary = TeacherScorer(model_folder), TeacherCanary()
    canary.restart(spec, scorer.begin_stage(spec, anchor="base", update=0))
    canary.observe(scorer.follow(1, snapshots[0]), snapshots[0])
    shifted = lambda teacher, policy, spec, moment: blend(teacher, policy, spec.gamma) if moment.follows == 2 else None  # noqa: E731
    monkeypatch.setitem(STRATEGIES, spec.kind, dataclasses.replace(STRATEGIES[spec.kind], update=shifted))
    with pytest.raises(TeacherError, match="own:model"):
        canary.observe(scorer.follow(2, snapshots[1]), snapshots[1])
    miscounted = dataclasses.replace(scorer.follow(2, snapshots[1]), teacher_version=3, before=2, follows=0)
    with pytest.raises(TeacherError, match="batches"):
        canary.observe(miscounted, snapshots[2])


def test_each_domain_is_held_to_its_own_strategy(model_folder, tmp_path):
    """Two averages whose rates are swapped are both wrong, although the set of rates is right."""
    spec = PerDomainTeacher(teachers={"a": EMA, "b": HALF})
    (snapshot,) = publish(tmp_path / "s", model_folder, 1)
    scorer, canary = TeacherScorer(model_folder), TeacherCanary()
    canary.restart(PerDomainTeacher(teachers={"a": HALF, "b": EMA}), scorer.begin_stage(spec, anchor="base", update=0))
    with pytest.raises(TeacherError, match="own/"):
        canary.observe(scorer.follow(1, snapshot), snapshot)


def test_several_optimizer_steps_of_a_batch_are_observed(model_folder, tmp_path):
    """Batches of three steps: one average moves with each step, the other once a batch; the canary is told what they are."""
    spec = PerDomainTeacher(teachers={"a": EmaTeacher(update_rate=0.05, every="optimizer_step"), "b": EMA})
    snapshots = publish(tmp_path / "s", model_folder, 6)
    scorer, canary = TeacherScorer(model_folder), TeacherCanary()
    canary.restart(spec, scorer.begin_stage(spec, anchor="base", update=0))
    for update, path in enumerate(snapshots, start=1):
        canary.observe(scorer.follow(update, path, ends_batch=update % 3 == 0), path, ends_batch=update % 3 == 0)
    once, other = TeacherCanary(), TeacherScorer(model_folder)
    once.restart(EMA, other.begin_stage(EMA, anchor="base", update=0))
    for update in (3, 6):
        once.observe(other.follow(update, snapshots[update - 1], after=update - 3), snapshots[update - 1], **({"after": 0} if update == 3 else {}))
    own, both = other.weights(), scorer
    assert all(torch.equal(tensor, both.weights("own/b")[name]) for name, tensor in own.items())
    assert not torch.equal(both.weights("own/a")["model.norm.weight"], own["model.norm.weight"])


def test_a_batch_whose_last_steps_changed_nothing_is_closed_at_the_same_update(model_folder, tmp_path):
    """Step 1 of a batch applied, step 2 not: the batch ends at update 1 again. What averages by batch moves now, once."""
    spec = PerDomainTeacher(teachers={"a": EmaTeacher(update_rate=0.05, every="optimizer_step"), "b": EMA})
    (snapshot,) = publish(tmp_path / "s", model_folder, 1)
    scorer, canary = TeacherScorer(model_folder), TeacherCanary()
    canary.restart(spec, scorer.begin_stage(spec, anchor="base", update=0))
    canary.observe(scorer.follow(1, snapshot, ends_batch=False), snapshot, ends_batch=False)
    assert not torch.equal(scorer.weights("own/a")["model.norm.weight"], scorer.weights("own/b")["model.norm.weight"])
    for _ in range(2):
        follow = scorer.follow(1, snapshot, after=0)
        canary.observe(follow, snapshot)
        assert follow.follows == 1
    assert all(torch.equal(tensor, scorer.weights("own/b")[name]) for name, tensor in scorer.weights("own/a").items())


def test_observing_twice_applies_once_and_a_restored_teacher_rebuilds_it(model_folder, tmp_path):
    snapshots = publish(tmp_path / "s", model_folder, 4)
    scorer, canary = TeacherScorer(model_folder), TeacherCanary()
    canary.restart(EMA, scorer.begin_stage(EMA, anchor="base", update=0))
    for _ in range(2):
        canary.observe(scorer.follow(1, snapshots[0]), snapshots[0])
    scorer.save(tmp_path / "teacher")
    restored, fresh = TeacherScorer(model_folder), TeacherCanary()
    restored.load(tmp_path / "teacher")
    fresh.restart(EMA, restored.begin_stage(EMA, anchor="resume", update=1))
    for update in (2, 3, 4):
        fresh.observe(restored.follow(update, snapshots[update - 1]), snapshots[update - 1])
    assert fresh.max_relative_error < 1e-5


def test_a_missed_publication_is_stale(model_folder, tmp_path):
    snapshots = publish(tmp_path / "s", model_folder, 3)
    scorer, canary = TeacherScorer(model_folder), TeacherCanary()
    start = scorer.begin_stage(EMA, anchor="base", update=0)
    with pytest.raises(TeacherError):
        canary.observe(start, snapshots[0])  # never started
    canary.restart(EMA, start)
    scorer.follow(1, snapshots[0])
    with pytest.raises(TeacherError) as caught:
        canary.observe(scorer.follow(2, snapshots[1]), snapshots[1])
    assert caught.value.reason == "teacher_stale"


def test_entries_are_spread_over_the_model(model_folder):
    scorer = TeacherScorer(model_folder)
    canary = canary_of(scorer.weights())
    assert len(canary) == 4 and all(len(values) in (8, 32, 64) for values in canary.values())
    flat = scorer.weights()["model.embed_tokens.weight"].reshape(-1).numpy()
    assert np.array_equal(canary["model.embed_tokens.weight"][[0, -1]], flat[[0, -1]])
