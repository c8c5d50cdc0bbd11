"""Where a step's groups come from: which problems, which seeds, which ids."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numbers_domain import Generator, Judge, Numbers

from cluster.errors import StageError
from cluster.spec.experience import DemonstrationExperience, PolicyExperience, PrefixSchedule
from rollout.engines.base import EngineSampling
from rollout.sources import Mixture, sampling_seed

SAMPLING = EngineSampling(temperature=1.0, top_p=1.0, max_tokens=32)


def problem_ids(groups):
    return [group.problem.problem_id for group in groups]


def test_one_domain_is_read_in_order_and_a_step_is_stateless(source, chat):
    first = source()
    assert problem_ids(first.next_experience(0, 3).groups) == [f"a/train/{i}" for i in range(4)]
    assert problem_ids(first.next_experience(5, 3).groups) == [f"a/train/{i}" for i in range(20, 24)]
    again, other = source().next_experience(5, 3).groups, first.next_experience(5, 3).groups
    assert [[r.text for r in g.rollouts] for g in again] == [[r.text for r in g.rollouts] for g in other]


def test_rollouts_carry_the_requests_prompt_and_the_engines_completion_untouched(source, chat):
    generate = Generator(chat)
    groups = source(generate=generate).next_experience(2, 3).groups
    requests, sampling = generate.calls[0]
    assert sampling == SAMPLING and len(requests) == len(groups) == 4
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
    groups = source(domains=[(Numbers("a"), 3.0), (Numbers("b"), 1.0)], problems_per_step=8).next_experience(1, 3).groups
    assert sorted(problem_ids(groups)) == sorted([*(f"a/train/{i}" for i in range(6, 12)), "b/train/2", "b/train/3"])
    assert {group.problem.domain for group in groups} == {"a", "b"}


def test_demonstrations_are_the_solutions_without_sampling(source, chat):
    generate = Generator(chat)
    groups = source(DemonstrationExperience(), generate=generate).next_experience(1, 9).groups
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
    completion = source(DemonstrationExperience(), sampling=sampling).next_experience(0, 0).groups[0].rollouts[0].completion
    assert len(completion.token_ids) == 2 and completion.finish_reason == "length"
    assert chat.eos_token_id not in completion.token_ids


@pytest.mark.parametrize("experience", [PolicyExperience(), DemonstrationExperience()], ids=lambda spec: spec.kind)
def test_a_prompt_that_is_too_long_is_refused_and_named(source, experience):
    with pytest.raises(StageError) as caught:
        source(experience, max_prompt_tokens=5).next_experience(2, 3)
    assert caught.value.reason == "prompt_too_long"
    assert "a/train/8" in caught.value.message and "max_prompt_tokens = 5" in caught.value.message
    assert str(caught.value.details["prompt_tokens"]) in caught.value.message


def test_prompts_of_exactly_the_limit_pass(source, chat):
    length = len(chat.prompt_token_ids(Numbers("a").problem("train", 0).messages))
    assert len(source(max_prompt_tokens=length, problems_per_step=1).next_experience(0, 3).groups) == 1


def test_rollouts_of_another_publication_are_refused(source):
    with pytest.raises(StageError) as caught:
        source().next_experience(0, 4)
    assert caught.value.reason == "stale_rollouts" and "[3]" in caught.value.message


def test_missing_completions_are_refused(source, chat):
    with pytest.raises(StageError) as caught:
        source(generate=Generator(chat, short=1)).next_experience(0, 3)
    assert caught.value.reason == "rollouts_missing"


def test_an_empty_domain_is_refused(source):
    with pytest.raises(StageError) as caught:
        source(domains=[(Numbers("a"), 1.0), (Numbers("b", size=0), 1.0)])
    assert caught.value.reason == "no_problems" and "b" in caught.value.message


def test_every_group_is_verified_and_verdicts_are_in_the_order_of_the_rollouts(source):
    for experience in (PolicyExperience(), DemonstrationExperience()):
        judge = Judge(lambda problem_id, child: child / 2)
        made = source(experience, verify=judge).next_experience(1, 3)
        assert judge.calls == [problem_ids(made.groups)]
        for group, verdicts in zip(made.groups, made.verdicts, strict=True):
            assert [verdict.details["text"] for verdict in verdicts] == [rollout.text for rollout in group.rollouts]
            assert [verdict.score for verdict in verdicts] == [0.0, 0.5, 1.0][: len(group.rollouts)]
        assert made.metrics == {}


def test_a_prefix_is_the_steps_own_limit_of_generation(source, chat):
    generate = Generator(chat)
    experience = PolicyExperience(prefix=PrefixSchedule(start_tokens=2, tokens_per_step=1.5))
    made = source(experience, generate=generate)
    found = [made.next_experience(step, 3).metrics["rollout/prefix_tokens"] for step in (0, 1, 2, 3, 100)]
    assert found == [2.0, 3.0, 5.0, 6.0, 32.0]
    assert [sampling.max_tokens for _, sampling in generate.calls] == [2, 3, 5, 6, 32]
    first = made.next_experience(0, 3).groups[0].rollouts[0].completion
    assert len(first.token_ids) == 2 and first.finish_reason == "length"


def test_demonstrations_of_a_stage_are_its_first_problems_solutions_each_once(source, chat):
    problems = source()._stage
    found = problems.demonstrations(6)
    wanted = [problem.solution for step in (0, 1) for problem in problems.problems(step)][:6]
    assert [chat.decode(one.token_ids) for one in found] == wanted and len(wanted) == 6
    assert all(one.token_ids[-1] == chat.eos_token_id and one.finish_reason == "stop" for one in found)


def test_demonstrations_take_no_row_twice_and_leave_out_what_has_no_solution(source):
    class Few(Numbers):
        """As a data set counts: behind its last row the first comes again, under another id."""

        def problem(self, split, index):
            found = Numbers(self.name).problem(split, index)
            return replace(found, solution="" if index % 3 == 1 else f"row {index % self._size}")

    few = source(domains=[(Few("a", 6), 1.0)])._stage
    assert [few.chat.decode(one.token_ids) for one in few.demonstrations(64)] == ["row 0", "row 2", "row 3", "row 5"]
    mixed = source(domains=[(Few("a", 6), 1.0), (Numbers("b"), 1.0)])._stage
    texts = [mixed.chat.decode(one.token_ids) for one in mixed.demonstrations(20)]
    assert len(texts) == 20 and sorted(text for text in texts if text.startswith("row")) == ["row 0", "row 2", "row 3", "row 5"]
    assert len(set(texts)) == 20
