"""Where a step's groups come from: which problems, which seeds, which ids."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import StageError
from cluster.messages import Completion, Problem
from cluster.spec.composition import DemonstrationExperience, PolicyExperience
from rollout.engines.base import EngineSampling
from rollout.sources import Mixture, build_source, sampling_seed


class Numbers:
    def __init__(self, name, size=None, prompt="what is {}?"):
        self.name, self._size, self._prompt = name, size, prompt

    def size(self, split):
        return self._size

    def problem(self, split, index):
        assert split == "train"
        return Problem(
            problem_id=f"{self.name}/{split}/{index}",
            domain=self.name,
            messages=({"role": "user", "content": self._prompt.format(index)},),
            solution=f"the {index}",
        )


class Generator:
    """Answers every request with its own seeds, as text."""

    def __init__(self, chat, version=3, short=0):
        self.chat, self.version, self.short, self.calls = chat, version, short, []

    def __call__(self, requests, sampling):
        self.calls.append((list(requests), sampling))
        return [tuple(self._one(request.seed + j) for j in range(request.num_completions - self.short)) for request in requests]

    def _one(self, seed):
        ids = self.chat.completion_token_ids(str(seed))
        return Completion(token_ids=ids, logprobs=np.full(len(ids), -0.5, np.float32), finish_reason="stop", policy_version=self.version)


SAMPLING = EngineSampling(temperature=1.0, top_p=1.0, max_tokens=32)


@pytest.fixture
def source(chat):
    def make(experience=None, generate=None, **changes):
        fields = {
            "domains": [(Numbers("a"), 1.0)],
            "chat": chat,
            "stage_index": 1,
            "job_seed": 7,
            "problems_per_step": 4,
            "rollouts_per_problem": 3,
            "sampling": SAMPLING,
            "max_prompt_tokens": 64,
            "generate": generate or Generator(chat),
        }
        return build_source(experience or PolicyExperience(), **{**fields, **changes})

    return make


def problem_ids(groups):
    return [group.problem.problem_id for group in groups]


def test_one_domain_is_read_in_order_and_a_step_is_stateless(source, chat):
    first = source()
    assert problem_ids(first.next_groups(0, 3)) == [f"a/train/{i}" for i in range(4)]
    assert problem_ids(first.next_groups(5, 3)) == [f"a/train/{i}" for i in range(20, 24)]
    again, other = source().next_groups(5, 3), first.next_groups(5, 3)
    assert [[r.text for r in g.rollouts] for g in again] == [[r.text for r in g.rollouts] for g in other]


def test_rollouts_carry_the_requests_prompt_and_the_engines_completion_untouched(source, chat):
    generate = Generator(chat)
    groups = source(generate=generate).next_groups(2, 3)
    requests, sampling = generate.calls[0]
    assert sampling is SAMPLING and len(requests) == len(groups) == 4
    ids = []
    for group, request in zip(groups, requests, strict=True):
        wanted = chat.prompt_token_ids(group.problem.messages)
        np.testing.assert_array_equal(request.prompt_token_ids, wanted)
        assert [rollout.text for rollout in group.rollouts] == [str(request.seed + j) for j in range(3)]
        for rollout in group.rollouts:
            np.testing.assert_array_equal(rollout.prompt_token_ids, wanted)
            assert rollout.problem_id == group.problem.problem_id
            assert rollout.completion.policy_version == 3 and rollout.completion.logprobs[0] == np.float32(-0.5)
            ids.append(rollout.rollout_id)
    assert len(set(ids)) == 12


def test_seeds_differ_by_job_stage_step_and_slot_and_leave_room_for_children():
    seeds = {
        sampling_seed(job, stage, step, slot, spacing=8)
        for job in range(3) for stage in range(3) for step in range(10) for slot in range(10)
    }  # fmt: skip
    assert len(seeds) == 900
    assert min(seeds) >= 0 and max(seeds) + 7 < 2**31 and all(seed % 8 == 0 for seed in seeds)
    assert sampling_seed(1, 23, 4, 5, spacing=8) != sampling_seed(12, 3, 4, 5, spacing=8)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0), (3.0, 1.0), (0.5, 0.3, 0.2), (1.0, 1e-3, 2.0, 0.1)])
def test_a_mixture_keeps_every_share_and_skips_no_problem(weights):
    dealt = Mixture(weights).slots(0, 5000)
    total, counts = sum(weights), [0] * len(weights)
    for number, (which, index) in enumerate(dealt, start=1):
        assert index == counts[which]
        counts[which] += 1
        for weight, count in zip(weights, counts, strict=True):
            assert abs(count - number * weight / total) < max(1.0, len(weights) - 1)


def test_a_mixture_gives_the_same_slots_from_wherever_it_is_asked():
    weights = (0.5, 0.3, 0.2)
    all_slots = Mixture(weights).slots(0, 400)
    jumping = Mixture(weights)
    assert jumping.slots(300, 20) == all_slots[300:320]
    assert jumping.slots(320, 20) == all_slots[320:340]
    assert jumping.slots(7, 3) == all_slots[7:10]


def test_mixed_groups_know_their_domain(source):
    groups = source(domains=[(Numbers("a"), 3.0), (Numbers("b"), 1.0)], problems_per_step=8).next_groups(1, 3)
    assert sorted(problem_ids(groups)) == sorted([*(f"a/train/{i}" for i in range(6, 12)), "b/train/2", "b/train/3"])
    assert {group.problem.domain for group in groups} == {"a", "b"}


def test_demonstrations_are_the_solutions_without_sampling(source, chat):
    generate = Generator(chat)
    groups = source(DemonstrationExperience(), generate=generate).next_groups(1, 9)
    assert generate.calls == []
    assert [len(group.rollouts) for group in groups] == [1] * 4
    completion = groups[0].rollouts[0].completion
    np.testing.assert_array_equal(completion.token_ids, chat.completion_token_ids("the 4"))
    assert completion.token_ids[-1] == chat.eos_token_id and completion.finish_reason == "stop"
    assert completion.policy_version == 0 and completion.logprobs.dtype == np.float32 and not completion.logprobs.any()
    assert len(completion.logprobs) == len(completion.token_ids)
    assert groups[0].rollouts[0].text == "the 4"


def test_a_long_demonstration_is_cut_without_an_end_of_turn(source, chat):
    sampling = EngineSampling(temperature=1.0, top_p=1.0, max_tokens=2)
    completion = source(DemonstrationExperience(), sampling=sampling).next_groups(0, 0)[0].rollouts[0].completion
    assert len(completion.token_ids) == 2 and completion.finish_reason == "length"
    assert chat.eos_token_id not in completion.token_ids


@pytest.mark.parametrize("experience", [PolicyExperience(), DemonstrationExperience()], ids=lambda spec: spec.kind)
def test_a_prompt_that_is_too_long_is_refused_and_named(source, experience):
    with pytest.raises(StageError) as caught:
        source(experience, max_prompt_tokens=5).next_groups(2, 3)
    assert caught.value.reason == "prompt_too_long"
    assert "a/train/8" in caught.value.message and "max_prompt_tokens = 5" in caught.value.message
    assert str(caught.value.details["prompt_tokens"]) in caught.value.message


def test_prompts_of_exactly_the_limit_pass(source, chat):
    length = len(chat.prompt_token_ids(Numbers("a").problem("train", 0).messages))
    assert len(source(max_prompt_tokens=length, problems_per_step=1).next_groups(0, 3)) == 1


def test_rollouts_of_another_publication_are_refused(source):
    with pytest.raises(StageError) as caught:
        source().next_groups(0, 4)
    assert caught.value.reason == "stale_rollouts" and "[3]" in caught.value.message


def test_missing_completions_are_refused(source, chat):
    with pytest.raises(StageError) as caught:
        source(generate=Generator(chat, short=1)).next_groups(0, 3)
    assert caught.value.reason == "rollouts_missing"


def test_an_empty_domain_is_refused(source):
    with pytest.raises(StageError) as caught:
        source(domains=[(Numbers("a"), 1.0), (Numbers("b", size=0), 1.0)])
    assert caught.value.reason == "no_problems" and "b" in caught.value.message
