"""The canary passes an honest teacher, for long, and catches every dishonest one at its first update."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny_teacher import build_model, publish

from cluster.errors import TeacherError
from cluster.spec.composition import EmaTeacher, FrozenTeacher, LiveTeacher
from cluster.transfer.snapshot import write_snapshot
from services.teacher.canary import POLICY_SHARE, Follow, TeacherCanary, canary_of
from services.teacher.scorer import TeacherScorer
from services.teacher.strategies import STRATEGIES, average, copy

EMA = EmaTeacher(update_rate=0.05)


@pytest.fixture
def model_folder(tmp_path):
    return build_model(tmp_path / "model", tied=True)


def _observed(spec, updates) -> TeacherCanary:
    """A canary over (scorer, snapshots) pairs, started at the scorer's anchor."""
    scorer, snapshots = updates
    canary = TeacherCanary()
    canary.restart(spec, scorer.begin_stage(spec, anchor="base", update=0))
    for update, path in enumerate(snapshots, start=1):
        canary.observe(scorer.follow(update, path), path)
    return canary


@pytest.mark.parametrize("spec", [EMA, FrozenTeacher(), LiveTeacher(), EmaTeacher(update_rate=0.5)], ids=lambda spec: spec.kind)
def test_an_honest_teacher_passes(model_folder, tmp_path, spec):
    snapshots = publish(tmp_path / "s", model_folder, 10, step=1e-5)
    assert _observed(spec, (TeacherScorer(model_folder), snapshots)).max_relative_error < 1e-5


def test_every_kind_has_its_closed_form():
    assert set(POLICY_SHARE) == set(STRATEGIES)


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.3])
def test_rounding_of_many_updates_is_no_alarm(rate, tmp_path):
    """500 updates, the policy standing still for the last 300: a float32 average then stops short of it."""
    spec = EmaTeacher(update_rate=rate)
    generator = torch.Generator().manual_seed(0)
    policy = {f"t{i}": torch.randn(100, generator=generator) * scale for i, scale in enumerate([1.0, 0.02, 1e-4, 1e-8])}
    state = {name: tensor.clone() for name, tensor in policy.items()}
    canary = TeacherCanary()
    canary.restart(spec, Follow(teacher_version=0, canary=canary_of(state)))
    path = tmp_path
    for update in range(1, 501):
        if update <= 200:
            policy = {name: tensor + tensor.abs().mean() * 1e-3 * torch.randn(100, generator=generator) for name, tensor in policy.items()}
            path = write_snapshot(tmp_path, 1, policy.items())
        state = STRATEGIES["ema"].update(state, policy, spec)
        canary.observe(Follow(teacher_version=update, canary=canary_of(state)), path)
    assert canary.max_relative_error > 0.0


FAULTS = {
    "stopped": lambda teacher, policy, spec: teacher,
    "wrong_rate": lambda teacher, policy, spec: average(teacher, policy, EmaTeacher(update_rate=0.06)),
    "swapped_rate": lambda teacher, policy, spec: average(teacher, policy, EmaTeacher(update_rate=0.95)),
    "twice": lambda teacher, policy, spec: average(average(teacher, policy, spec), policy, spec),
    "copied": lambda teacher, policy, spec: copy(teacher, policy, spec),
    "bfloat16": lambda teacher, policy, spec: {
        name: average({name: tensor.bfloat16()}, {name: policy[name].bfloat16()}, spec)[name].float()
        for name, tensor in teacher.items()
    },
    "not_finite": lambda teacher, policy, spec: {name: tensor * float("nan") for name, tensor in teacher.items()},
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


@pytest.mark.parametrize("spec", [FrozenTeacher(), LiveTeacher()], ids=lambda spec: spec.kind)
def test_a_frozen_or_live_teacher_that_averages_is_caught(model_folder, tmp_path, monkeypatch, spec):
    wrong = dataclasses.replace(STRATEGIES[spec.kind], update=lambda t, p, s: STRATEGIES["ema"].update(t, p, EmaTeacher(update_rate=0.5)))
    monkeypatch.setitem(STRATEGIES, spec.kind, wrong)
    snapshots = publish(tmp_path / "s", model_folder, 1, step=1e-5)
    with pytest.raises(TeacherError) as caught:
        _observed(spec, (TeacherScorer(model_folder), snapshots))
    assert caught.value.reason == "teacher_diverged"


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
    canary = canary_of(scorer._state)
    assert len(canary) == 4 and all(len(values) in (8, 32, 64) for values in canary.values())
    flat = scorer._state["model.embed_tokens.weight"].reshape(-1).numpy()
    assert np.array_equal(canary["model.embed_tokens.weight"][[0, -1]], flat[[0, -1]])
