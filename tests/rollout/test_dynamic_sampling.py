"""Equal groups are dropped and refilled from problems of their own; the same after every restart."""

from __future__ import annotations

import pytest
from numbers_domain import Generator, Judge, Numbers

from cluster.messages import Verdict
from cluster.spec.experience import DynamicSampling, PolicyExperience
from rollout.seeds import sampling_seed
from rollout.sources.policy import scores_differ

REFILLS = 10**9


def dynamic(max_refills=3):
    return PolicyExperience(dynamic_sampling=DynamicSampling(max_refills=max_refills))


def index_of(problem_id):
    return int(problem_id.rsplit("/", 1)[1])


def equal_at(*indices):
    """A judge that gives equal scores to the problems of these indices, and different ones to all others."""
    return Judge(lambda problem_id, child: 1.0 if index_of(problem_id) in indices else child / 2)


def problem_ids(groups):
    return [group.problem.problem_id for group in groups]


@pytest.mark.parametrize(
    ("scores", "differ"),
    [
        ([1.0, 1.0, 1.0], False),
        ([1.0, 0.999, 1.0], True),
        ([1.0, None, 1.0], False),
        ([1.0, None, 0.0], True),
        ([1.0, None, None], False),
        ([None, None], False),
        ([], False),
    ],
)
def test_scores_differ_among_those_that_were_judged(scores, differ):
    verdicts = [Verdict(score=score or 0.0, passed=False, error="failed" if score is None else None) for score in scores]
    assert scores_differ(verdicts) is differ


def test_equal_groups_are_replaced_by_the_next_problems_of_the_refills_own_range(source):
    # step 2 has problems 8 to 11; its refills are number 6, 7 and 8 of the stage, four indices each
    judge = equal_at(8, 10, REFILLS + 24)
    made = source(dynamic(), verify=judge).next_experience(2, 3)
    assert judge.calls == [
        [f"a/train/{i}" for i in (8, 9, 10, 11)],
        [f"a/train/{REFILLS + i}" for i in (24, 25)],
        [f"a/train/{REFILLS + 28}"],
    ]
    assert problem_ids(made.groups) == [f"a/train/{i}" for i in (9, 11, REFILLS + 25, REFILLS + 28)]
    assert all([verdict.score for verdict in verdicts] == [0.0, 0.5, 1.0] for verdicts in made.verdicts)
    for group, verdicts in zip(made.groups, made.verdicts, strict=True):
        assert [verdict.details["text"] for verdict in verdicts] == [rollout.text for rollout in group.rollouts]
    assert made.metrics == {
        "rollout/refill_rounds": 2.0,
        "rollout/refill_cap_reached": 0.0,
        "rollout/sampled_groups": 7.0,
        "rollout/dropped_groups": 3.0,
        "rollout/equal_groups_kept": 0.0,
    }


def test_seeds_and_ids_of_refills_are_functions_of_step_and_round(source, chat):
    generate = Generator(chat)
    made = source(dynamic(), generate=generate, verify=equal_at(8, 10, REFILLS + 24)).next_experience(2, 3)
    seeds = [[request.seed for request in requests] for requests, _ in generate.calls]
    wanted = [[sampling_seed(7, 1, 2, slot, spacing=3) for slot in slots] for slots in ((0, 1, 2, 3), (4, 5), (8,))]
    assert seeds == wanted
    ids = [rollout.rollout_id for group in made.groups for rollout in group.rollouts]
    assert ids == [f"1/2/{slot}/{child}" for slot in (1, 3, 5, 8) for child in range(3)]


def texts(made):
    return [(group.problem.problem_id, [rollout.text for rollout in group.rollouts]) for group in made.groups]


def test_a_restarted_stage_refills_alike_and_no_step_takes_anothers_problems(source):
    equal = equal_at(*range(0, 100, 3), *range(REFILLS, REFILLS + 500, 3))
    running = source(dynamic(), verify=equal)
    in_order = [texts(running.next_experience(step, 3)) for step in range(6)]
    for step in (5, 0, 3, 3):
        assert texts(source(dynamic(), verify=equal).next_experience(step, 3)) == in_order[step]
        assert texts(running.next_experience(step, 3)) == in_order[step]
    used = [problem_id for of_step in in_order for problem_id, _ in of_step]
    assert len(set(used)) == len(used) == 24
    own = [index for index in map(index_of, used) if index < REFILLS]
    assert own == [index for index in range(24) if index % 3]  # what a step would have had without refills, less the equal ones


def test_the_cap_ends_the_refills_and_the_step_goes_on_with_what_differs(source):
    judge = Judge(lambda problem_id, child: child / 2 if index_of(problem_id) in (1, REFILLS + 1) else 1.0)
    made = source(dynamic(max_refills=2), verify=judge).next_experience(0, 3)
    assert problem_ids(made.groups) == ["a/train/1", f"a/train/{REFILLS + 1}"]
    assert [len(call) for call in judge.calls] == [4, 3, 2]
    assert made.metrics == {
        "rollout/refill_rounds": 2.0,
        "rollout/refill_cap_reached": 1.0,
        "rollout/sampled_groups": 9.0,
        "rollout/dropped_groups": 7.0,
        "rollout/equal_groups_kept": 0.0,
    }


def test_a_step_without_any_difference_keeps_its_own_groups(source):
    judge = Judge()
    made = source(dynamic(max_refills=2), verify=judge).next_experience(3, 3)
    assert problem_ids(made.groups) == [f"a/train/{i}" for i in range(12, 16)] and len(made.verdicts) == 4
    assert [len(call) for call in judge.calls] == [4, 4, 4]
    assert made.metrics == {
        "rollout/refill_rounds": 2.0,
        "rollout/refill_cap_reached": 1.0,
        "rollout/sampled_groups": 12.0,
        "rollout/dropped_groups": 8.0,
        "rollout/equal_groups_kept": 4.0,
    }


def test_nothing_is_sampled_again_where_all_groups_differ(source, chat):
    generate = Generator(chat)
    made = source(dynamic(), generate=generate, verify=equal_at()).next_experience(1, 3)
    assert len(generate.calls) == 1 and made.metrics["rollout/refill_rounds"] == 0.0
    plain = source(generate=Generator(chat)).next_experience(1, 3)
    assert texts(made) == texts(plain)


def test_refills_keep_the_mixtures_shares(source):
    judge = Judge(lambda problem_id, child: child / 2 if index_of(problem_id) >= REFILLS else 1.0)
    domains = [(Numbers("a"), 3.0), (Numbers("b"), 1.0)]
    made = source(dynamic(), verify=judge, domains=domains, problems_per_step=8).next_experience(1, 3)
    # refill 3 of the stage: slots 24 to 31, three of four from a
    assert sorted(problem_ids(made.groups)) == sorted(
        [*(f"a/train/{REFILLS + i}" for i in range(18, 24)), *(f"b/train/{REFILLS + i}" for i in (6, 7))]
    )
