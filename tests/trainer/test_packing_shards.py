"""Packing: weights and denominators by their definitions, dead samples, integrity, balance."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import TeacherError
from cluster.messages import Completion, Problem, Rollout, RolloutGroup, TeacherScores, Verdict, token_digest
from cluster.spec.composition import (
    Composition,
    CrossEntropy,
    DemonstrationExperience,
    EmaTeacher,
    ForwardKL,
    FullSupport,
    PolicyGradient,
    Term,
    TopKSupport,
)
from trainer.balancing import num_tokens
from trainer.packing import pack

LENGTHS = ((4, 2, 6), (3, 3, 5), (1, 8, 2))
SCORES = ((0.0, 1.0, 0.5), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0))


def _groups() -> list[RolloutGroup]:
    groups = []
    for index, lengths in enumerate(LENGTHS):
        problem = Problem(problem_id=f"d/train/{index}", domain="d", messages=({"role": "user", "content": "?"},), solution="!")
        rollouts = tuple(
            Rollout(
                rollout_id=f"r{index}.{member}",
                problem_id=problem.problem_id,
                prompt_token_ids=np.arange(5 + index, dtype=np.int32),
                completion=Completion(
                    token_ids=np.arange(length, dtype=np.int32) + 10 * member,
                    logprobs=np.full(length, -1.0, np.float32),
                    finish_reason="length" if length == 8 else "stop",
                    policy_version=3,
                    support_ids=np.tile(np.arange(4, dtype=np.int32), (length, 1)),
                ),
                text="",
            )
            for member, length in enumerate(lengths)
        )
        groups.append(RolloutGroup(problem=problem, rollouts=rollouts))
    return groups


def _verdicts(errors=()) -> list[list[Verdict]]:
    return [
        [Verdict(score=score, passed=score == 1.0, error="boom" if (g, m) in errors else None) for m, score in enumerate(scores)]
        for g, scores in enumerate(SCORES)
    ]


def _scores(groups, missing=(), **changes) -> list[list[TeacherScores | None]]:
    def score(rollout):
        length = len(rollout.completion.token_ids)
        fields = {
            "rollout_id": rollout.rollout_id,
            "problem_id": rollout.problem_id,
            "teacher_version": 9,
            "completion_digest": token_digest(rollout.completion.token_ids),
            "logprobs": np.full(length, -2.0, np.float32),
            "support_logprobs": np.full((length, 4), -3.0, np.float32),
            "hidden": np.zeros((length, 2), np.float32),
        }
        return TeacherScores(**(fields | changes))

    return [[None if (g, m) in missing else score(rollout) for m, rollout in enumerate(group.rollouts)] for g, group in enumerate(groups)]


def _pg(**fields) -> Composition:
    return Composition(terms=(Term(name="pg", objective=PolicyGradient(), **fields),))


def _kl(**fields) -> Composition:
    return Composition(teacher=EmaTeacher(), terms=(Term(name="kl", objective=ForwardKL(), support=FullSupport(), **fields),))


def _pack(composition, *, scores=None, errors=(), num_ranks=1, budget=1000, **more):
    return pack(_groups(), _verdicts(errors), scores, composition, num_ranks=num_ranks, micro_batch_tokens=budget, **more)


def _samples(packed):
    return {sample.sample_id: sample for shard in packed.shards for part in shard.micro_batches for sample in part}


def _count(packed, name) -> float:
    return sum(shard.term_counts[name] for shard in packed.shards)


def test_grpo_drops_equal_groups_but_keeps_them_in_the_denominator():
    packed = _pack(_pg(normaliser="sequence_mean"))
    samples = _samples(packed)
    # group 1 is all right; in group 0 the middle score is the mean, its advantage is exactly zero
    assert sorted(samples) == ["r0.0", "r0.1", "r2.0", "r2.1", "r2.2"]
    assert _count(packed, "pg") == 9.0
    assert samples["r0.0"].advantage == pytest.approx(-0.5 / (0.5 + 1e-6))
    for sample in samples.values():
        assert sample.term_weights["pg"].sum() == pytest.approx(1.0, abs=1e-6)
    assert _count(_pack(_pg(normaliser="token_mean")), "pg") == sum(map(sum, LENGTHS))
    assert packed.metrics["batch/dead_share"] == pytest.approx(4 / 9)
    assert packed.metrics["rollout/score_mean"] == pytest.approx(5.5 / 9)
    assert packed.metrics["rollout/length_mean"] == pytest.approx(34 / 9)
    assert packed.metrics["rollout/truncated_share"] == pytest.approx(1 / 9)
    assert packed.metrics["rollout/equal_score_groups_share"] == pytest.approx(1 / 3)
    assert "batch/target_share" not in packed.metrics


def test_samples_without_target_count_only_where_asked():
    missing = {(0, 0), (2, 1)}
    scores = _scores(_groups(), missing)
    head = np.zeros((3, 2), np.float32)
    packed = _pack(_kl(), scores=scores, teacher_head=head)
    assert set(_samples(packed)).isdisjoint({"r0.0", "r2.1"}) and len(_samples(packed)) == 7
    assert _count(packed, "kl") == 34 - 4 - 8
    assert packed.metrics["batch/target_share"] == pytest.approx(7 / 9)
    assert packed.shards[0].teacher_head is head
    assert _count(_pack(_kl(count_missing_targets=True), scores=scores), "kl") == 34
    assert _count(_pack(_kl(normaliser="sequence_mean", count_missing_targets=True), scores=scores), "kl") == 9
    assert _count(_pack(_kl(normaliser="sequence_mean"), scores=scores), "kl") == 7


def test_skipped_tokens_have_no_weight_and_are_not_counted():
    packed = _pack(_kl(skip_first_tokens=3), scores=_scores(_groups()))
    samples = _samples(packed)
    assert samples["r2.1"].term_weights["kl"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert "r0.1" not in samples and "r1.0" not in samples
    assert _count(packed, "kl") == (1 + 3) + 2 + 5
    by_sequence = _samples(_pack(_kl(skip_first_tokens=3, normaliser="sequence_mean"), scores=_scores(_groups())))
    assert by_sequence["r2.1"].term_weights["kl"].tolist() == pytest.approx([0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2])


def test_a_sample_lives_while_any_term_does():
    composition = Composition(
        teacher=EmaTeacher(),
        terms=(
            Term(name="pg", objective=PolicyGradient()),
            Term(name="kl", objective=ForwardKL(), support=TopKSupport(k=4)),
        ),
    )
    samples = _samples(_pack(composition, scores=_scores(_groups(), {(1, 0), (0, 0)})))
    assert set(samples["r1.1"].term_weights) == {"kl"}
    assert set(samples["r0.0"].term_weights) == {"pg"} and samples["r0.0"].teacher_logprobs is None
    assert set(samples["r0.2"].term_weights) == {"pg", "kl"} - ({"pg"} if samples["r0.2"].advantage == 0 else set())
    assert "r1.0" not in samples
    assert samples["r1.1"].support_ids.shape == (3, 4)


def test_failed_verifiers_are_excluded_from_group_and_denominator():
    packed = _pack(_pg(normaliser="sequence_mean"), errors={(0, 0), (1, 1)})
    assert "r0.0" not in _samples(packed) and _count(packed, "pg") == 7.0
    assert _samples(packed)["r0.1"].advantage == pytest.approx(0.25 / (0.125**0.5 + 1e-6))
    assert packed.metrics["rollout/verifier_error_share"] == pytest.approx(2 / 9)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"problem_id": "d/train/7"}, "context_mismatch"),
        ({"completion_digest": token_digest(np.arange(99))}, "completion_tokens_changed"),
        ({"logprobs": np.zeros(1, np.float32), "teacher_version": 9}, "completion_tokens_changed"),
        ({"teacher_version": 8}, "teacher_stale"),
    ],
)
def test_scores_that_are_not_of_this_batch_are_errors(changes, reason):
    with pytest.raises(TeacherError) as caught:
        _pack(_kl(), scores=_scores(_groups(), **changes), expected_teacher_version=9)
    assert caught.value.reason == reason


def test_swapping_two_groups_scores_is_a_context_mismatch():
    scores = _scores(_groups())
    with pytest.raises(TeacherError) as caught:
        _pack(_kl(), scores=[scores[1], scores[0], scores[2]], expected_teacher_version=9)
    assert caught.value.reason == "context_mismatch"


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 12])
@pytest.mark.parametrize("budget", [1, 15, 1000])
def test_every_sample_is_in_one_micro_batch_and_ranks_match(num_ranks, budget):
    composition = Composition(experience=DemonstrationExperience(), terms=(Term(name="ce", objective=CrossEntropy()),))
    packed = _pack(composition, num_ranks=num_ranks, budget=budget)
    parts = [part for shard in packed.shards for part in shard.micro_batches]
    assert sorted(sample.sample_id for part in parts for sample in part) == sorted(f"r{g}.{m}" for g in range(3) for m in range(3))
    assert len({len(shard.micro_batches) for shard in packed.shards}) == 1 and len(packed.shards) == num_ranks
    for part in parts:
        assert len(part) <= 1 or sum(map(num_tokens, part)) <= budget
    loads = [sum(num_tokens(sample) for part in shard.micro_batches for sample in part) for shard in packed.shards]
    assert max(loads) - min(loads) <= 14  # the longest sample
    assert _count(packed, "ce") == 34.0


def test_a_batch_without_a_live_sample_has_no_micro_batch():
    verdicts = [[Verdict(score=1.0, passed=True)] * 3 for _ in range(3)]
    packed = pack(_groups(), verdicts, None, _pg(), num_ranks=2, micro_batch_tokens=100)
    assert [shard.micro_batches for shard in packed.shards] == [(), ()]
    assert packed.metrics["batch/dead_share"] == 1.0 and _count(packed, "pg") == 34.0
