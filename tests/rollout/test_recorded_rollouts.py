"""Recorded rollouts come back bit by bit, or say why they cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numbers_domain import Generator, Judge, Numbers

from cluster.errors import StageError
from cluster.messages import Completion, Rollout, RolloutGroup
from cluster.spec.experience import DynamicSampling, PolicyExperience, ReplayedExperience
from rollout.engines.base import EngineSampling
from rollout.sources import recording

RECORD = PolicyExperience(record=True)
REPLAY = ReplayedExperience(path="anywhere")
SAMPLING = EngineSampling(temperature=0.7, top_p=1.0, max_tokens=32, support_k=5)


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def failure(source, step=0, **changes) -> StageError:
    with pytest.raises(StageError) as raised:
        source(REPLAY, **changes).next_experience(step, 9)
    return raised.value


@pytest.fixture
def recorded(source, tmp_path):
    """Two recorded steps of domain a, and what they were."""
    made = source(RECORD, sampling=SAMPLING, record_to=tmp_path / "rollouts")
    return [made.next_experience(step, 3) for step in range(2)]


@pytest.fixture
def replay(tmp_path):
    return {"replay_from": tmp_path / "rollouts", "sampling": SAMPLING}


def test_a_replayed_step_is_the_recorded_one_bit_by_bit(source, chat, recorded, replay):
    generate = Generator(chat)
    again = source(REPLAY, generate=generate, **replay)
    for step in (1, 0):
        was, is_now = recorded[step], again.next_experience(step, 9)
        assert [group.problem for group in is_now.groups] == [group.problem for group in was.groups]
        for old, new in zip(was.groups, is_now.groups, strict=True):
            assert len(old.rollouts) == len(new.rollouts) == 3
            for sampled, replayed in zip(old.rollouts, new.rollouts, strict=True):
                assert (replayed.rollout_id, replayed.problem_id, replayed.text) == (
                    sampled.rollout_id,
                    sampled.problem_id,
                    sampled.text,
                )
                assert same_bits(replayed.prompt_token_ids, sampled.prompt_token_ids)
                for name in ("token_ids", "logprobs", "support_ids", "support_logprobs"):
                    assert same_bits(getattr(replayed.completion, name), getattr(sampled.completion, name)), name
                assert replayed.completion.finish_reason == sampled.completion.finish_reason
                assert replayed.completion.policy_version == 0 and sampled.completion.policy_version == 3
    assert generate.calls == []


def test_replayed_rollouts_are_verified_anew(source, recorded, replay):
    judge = Judge(lambda problem_id, child: child / 2)
    made = source(REPLAY, verify=judge, **replay).next_experience(1, 9)
    assert judge.calls == [[f"a/train/{i}" for i in range(4, 8)]]
    assert [[verdict.score for verdict in verdicts] for verdicts in made.verdicts] == [[0.0, 0.5, 1.0]] * 4


def test_any_float_and_any_group_size_survives(group, tmp_path):
    strange = np.asarray(
        [-0.0, -np.inf, np.float32(1e-45), -103.27893, np.nextafter(np.float32(-1), np.float32(0))], dtype=np.float32
    )
    first, second = group("95", "no", "x"), group("12")

    def with_logprobs(rollout: Rollout, values: np.ndarray) -> Rollout:
        ids = np.arange(len(values), dtype=np.int32)
        fields = {name: getattr(rollout, name) for name in rollout.__slots__}
        completion = Completion(token_ids=ids, logprobs=values, finish_reason="length", policy_version=5)
        return Rollout(**{**fields, "completion": completion})

    groups = [
        RolloutGroup(problem=first.problem, rollouts=(with_logprobs(first.rollouts[0], strange), *first.rollouts[1:])),
        RolloutGroup(problem=second.problem, rollouts=second.rollouts),
    ]
    recording.write_step(tmp_path, 3, groups, replace(SAMPLING, support_k=0))
    back = recording.read_step(tmp_path, 3, replace(SAMPLING, support_k=0))
    assert [len(one.completions) for one in back] == [3, 1]
    assert same_bits(back[0].completions[0].logprobs, strange) and back[0].completions[0].finish_reason == "length"
    for one, of_group in zip(back, groups, strict=True):
        for completion, rollout in zip(one.completions, of_group.rollouts, strict=True):
            assert same_bits(completion.token_ids, rollout.completion.token_ids) and completion.support_ids is None
        assert same_bits(one.prompt_token_ids, of_group.rollouts[0].prompt_token_ids)


def test_a_file_is_whole_or_not_there_and_a_repeated_step_replaces_it(source, recorded, replay, tmp_path, monkeypatch):
    folder = tmp_path / "rollouts"
    names = ["step-000000.safetensors", "step-000001.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    before = (folder / names[1]).read_bytes()
    source(RECORD, sampling=SAMPLING, record_to=folder).next_experience(1, 3)
    assert (folder / names[1]).read_bytes() == before

    def power_cut(*paths):
        raise OSError("power cut")

    monkeypatch.setattr(recording.os, "replace", power_cut)
    with pytest.raises(OSError, match="power cut"):
        source(RECORD, sampling=SAMPLING, record_to=folder).next_experience(2, 3)
    assert failure(source, 2, **replay).reason == "replay_missing"


def test_nothing_is_recorded_that_was_not_asked_for(source, tmp_path):
    source(PolicyExperience(), record_to=tmp_path / "rollouts").next_experience(0, 3)
    assert not (tmp_path / "rollouts").exists()
    with pytest.raises(ValueError, match="record_to names no folder"):
        source(RECORD)
    with pytest.raises(ValueError, match="replay_from names no folder"):
        source(REPLAY)


def test_refilled_steps_are_replayed_as_they_were_kept(source, tmp_path):
    experience = PolicyExperience(record=True, dynamic_sampling=DynamicSampling(max_refills=2))
    judge = Judge(lambda problem_id, child: 1.0 if problem_id in ("a/train/0", "a/train/2") else child / 2)
    was = source(experience, verify=judge, record_to=tmp_path / "rollouts").next_experience(0, 3)
    again = source(REPLAY, replay_from=tmp_path / "rollouts").next_experience(0, 3)
    ids = [[rollout.rollout_id for rollout in group.rollouts] for group in again.groups]
    assert ids == [[rollout.rollout_id for rollout in group.rollouts] for group in was.groups]
    assert [group.problem.problem_id for group in again.groups] == [
        "a/train/1",
        "a/train/3",
        "a/train/1000000000",
        "a/train/1000000001",
    ]


# -- what cannot be replayed -----------------------------------------------------------------------------------------


def test_a_missing_folder_and_a_missing_step_are_named(source, recorded, replay, tmp_path):
    with pytest.raises(StageError, match="no recorded rollouts at") as raised:
        source(REPLAY, replay_from=tmp_path / "elsewhere")
    assert raised.value.reason == "replay_missing"
    error = failure(source, 2, **replay)
    assert error.reason == "replay_missing" and "there are 2 steps, step-000000.safetensors to step-000001" in error.message


@pytest.mark.parametrize("damage", [lambda content: content[:-7], lambda content: b"{}" + content, lambda content: b""])
def test_a_damaged_file_is_named(source, recorded, replay, damage):
    file = recording.step_file(replay["replay_from"], 0)
    file.write_bytes(damage(file.read_bytes()))
    error = failure(source, **replay)
    assert error.reason == "replay_damaged" and str(file) in error.message


def test_a_file_of_something_else_is_no_recording(source, recorded, replay):
    from safetensors.numpy import save_file

    save_file({"weight": np.zeros(3, np.float32)}, recording.step_file(replay["replay_from"], 0))
    assert failure(source, **replay).reason == "replay_damaged"


def test_a_problem_of_another_domain_or_beyond_the_end_is_missing(source, recorded, replay):
    error = failure(source, domains=[(Numbers("b"), 1.0)], **replay)
    assert error.reason == "replay_problem_missing" and "a/train/0" in error.message and "['b']" in error.message
    error = failure(source, 1, domains=[(Numbers("a", size=5), 1.0)], **replay)
    assert error.reason == "replay_problem_missing" and error.details == {"problem_id": "a/train/5"}


def test_a_problem_whose_prompt_changed_is_refused(source, recorded, replay):
    error = failure(source, domains=[(Numbers("a", prompt="what was {}?"), 1.0)], **replay)
    assert error.reason == "replay_prompt_changed" and error.details == {"problem_id": "a/train/0"}


@pytest.mark.parametrize("change", [{"temperature": 1.0}, {"top_p": 0.9}, {"top_k": 40}])
def test_log_probabilities_of_another_sampling_are_refused(source, recorded, replay, change):
    error = failure(source, **{**replay, "sampling": replace(SAMPLING, **change)})
    assert error.reason == "replay_sampling_differs" and "0.7" in error.message


def test_a_support_is_cut_to_its_first_ids_and_never_widened(source, recorded, replay):
    narrow = source(REPLAY, **{**replay, "sampling": replace(SAMPLING, support_k=2)}).next_experience(0, 9)
    old, new = recorded[0].groups[1].rollouts[2].completion, narrow.groups[1].rollouts[2].completion
    assert same_bits(new.support_ids, np.ascontiguousarray(old.support_ids[:, :2]))
    assert same_bits(new.support_logprobs, np.ascontiguousarray(old.support_logprobs[:, :2]))
    none = source(REPLAY, **{**replay, "sampling": replace(SAMPLING, support_k=0)}).next_experience(0, 9)
    assert none.groups[0].rollouts[0].completion.support_ids is None
    error = failure(source, **{**replay, "sampling": replace(SAMPLING, support_k=6)})
    assert error.reason == "replay_support_missing" and "holds the 5 most likely ids" in error.message


def test_a_recorded_completion_above_the_stages_limit_is_refused(source, recorded, replay):
    error = failure(source, **{**replay, "sampling": replace(SAMPLING, max_tokens=2)})
    assert error.reason == "replay_too_long" and "max_tokens = 2" in error.message
