"""Packing: dead samples, integrity of scores, updates, ranks and balance."""

from __future__ import annotations

import numpy as np
import pytest
from packing_cases import (
    IDS,
    TOKENS,
    count_of,
    kl,
    make_groups,
    make_scores,
    make_verdicts,
    pack_cases,
    per_rollout,
    pg,
    policy_looked,
    samples_of,
)

from cluster.errors import TeacherError
from cluster.messages import token_digest
from cluster.spec.composition import Composition, Term
from cluster.spec.experience import DemonstrationExperience
from cluster.spec.objectives import CrossEntropy, EntropyBonus, ForwardKL, PolicyGradient, ReferenceKL
from cluster.spec.supports import TopKSupport
from cluster.spec.teachers import EmaTeacher
from trainer.balancing import num_tokens
from trainer.packing import _deal
from trainer.samples import Candidate

# -- dead samples (T10) ----------------------------------------------------------------------------------------------


def test_grpo_drops_equal_groups_but_keeps_them_in_the_denominator():
    packed = pack_cases(pg(normaliser="sequence_mean"))
    samples = samples_of(packed)
    # group 1 is all right; in group 0 the middle score is the mean, its advantage is exactly zero
    assert sorted(samples) == ["r0.0", "r0.1", "r2.0", "r2.1", "r2.2"]
    assert count_of(packed, "pg") == 9.0
    assert samples["r0.0"].term_advantages["pg"].tolist() == pytest.approx([-0.5 / (0.5 + 1e-6)] * 4)
    assert samples["r0.0"].term_advantages["pg"].dtype == np.float32
    for sample in samples.values():
        assert sample.term_weights["pg"].sum() == pytest.approx(1.0, abs=1e-6)
    assert count_of(pack_cases(pg(normaliser="token_mean")), "pg") == TOKENS
    assert packed.metrics["batch/dead_share"] == pytest.approx(4 / 9)
    assert packed.metrics["rollout/score_mean"] == pytest.approx(5.5 / 9)
    assert packed.metrics["rollout/length_mean"] == pytest.approx(34 / 9)
    assert packed.metrics["rollout/truncated_share"] == pytest.approx(1 / 9)
    assert packed.metrics["rollout/equal_score_groups_share"] == pytest.approx(1 / 3)
    assert "batch/target_share" not in packed.metrics


@pytest.mark.parametrize("other", [ReferenceKL(), EntropyBonus()], ids=["reference_kl", "entropy_bonus"])
def test_a_penalty_keeps_an_equal_group_alive(other):
    """T10 is of the policy-gradient term alone."""
    composition = Composition(terms=(Term(name="pg", objective=PolicyGradient()), Term(name="other", objective=other)))
    reference = per_rollout(lambda rollout: np.full(len(rollout.completion.token_ids), -1.25, np.float32))
    packed = pack_cases(composition, reference_logprobs=reference)
    samples = samples_of(packed)
    assert sorted(samples) == IDS and packed.metrics["batch/dead_share"] == 0.0
    for name in ("r1.0", "r1.1", "r1.2", "r0.2"):
        assert set(samples[name].term_weights) == {"other"} and not samples[name].term_advantages
    assert set(samples["r0.0"].term_weights) == {"pg", "other"}
    has_reference = samples["r1.0"].reference_logprobs is not None
    assert has_reference == (other.kind == "reference_kl")
    assert count_of(packed, "pg") == count_of(packed, "other") == TOKENS


def test_a_sample_lives_while_any_term_does():
    composition = Composition(
        teacher=EmaTeacher(),
        terms=(
            Term(name="pg", objective=PolicyGradient()),
            Term(name="kl", objective=ForwardKL(), support=TopKSupport(k=4)),
        ),
    )
    samples = samples_of(pack_cases(composition, scores=make_scores(missing={(1, 0), (0, 0)})))
    assert set(samples["r1.1"].term_weights) == {"kl"}
    assert set(samples["r0.0"].term_weights) == {"pg"} and samples["r0.0"].teacher_logprobs is None
    assert set(samples["r0.1"].term_weights) == {"pg", "kl"} and set(samples["r0.2"].term_weights) == {"kl"}
    assert "r1.0" not in samples
    assert samples["r1.1"].support_ids.shape == (3, 4)


def test_an_advantage_that_is_not_finite_is_not_dead():
    verdicts = make_verdicts(scores=((0.0, float("nan"), 0.5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)))
    assert sorted(samples_of(pack_cases(pg(), verdicts=verdicts))) == ["r0.0", "r0.1", "r0.2"]


def test_a_batch_without_a_live_sample_has_no_micro_batch():
    packed = pack_cases(pg(), verdicts=make_verdicts(scores=((1.0,) * 3,) * 3), num_ranks=2)
    assert [shard.micro_batches for shard in packed.updates[0]] == [(), ()]
    assert packed.metrics["batch/dead_share"] == 1.0 and count_of(packed, "pg") == TOKENS


def test_failed_verifiers_are_excluded_from_group_and_denominator():
    packed = pack_cases(pg(normaliser="sequence_mean"), errors={(0, 0), (1, 1)})
    assert "r0.0" not in samples_of(packed) and count_of(packed, "pg") == 7.0
    assert samples_of(packed)["r0.1"].term_advantages["pg"][0] == pytest.approx(0.25 / (0.125**0.5 + 1e-6))
    assert packed.metrics["rollout/verifier_error_share"] == pytest.approx(2 / 9)


# -- integrity -------------------------------------------------------------------------------------------------------


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
        pack_cases(kl(), scores=make_scores(**changes), expected_teacher_version=9)
    assert caught.value.reason == reason


def test_swapping_two_groups_scores_is_a_context_mismatch():
    scores = make_scores()
    with pytest.raises(TeacherError) as caught:
        pack_cases(kl(), scores=[scores[1], scores[0], scores[2]], expected_teacher_version=9)
    assert caught.value.reason == "context_mismatch"


def test_a_reference_must_have_scored_every_completion_and_all_of_it():
    composition = Composition(terms=(Term(name="reference", objective=ReferenceKL()),))
    with pytest.raises(ValueError, match=r"r0\.0.*reference"):
        pack_cases(composition, reference_logprobs={})
    short = per_rollout(lambda rollout: np.zeros(1, np.float32))
    with pytest.raises(TeacherError) as caught:
        pack_cases(composition, reference_logprobs=short)
    assert caught.value.reason == "completion_tokens_changed"


# -- updates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", [2, 3])
def test_whole_groups_are_dealt_to_updates_with_their_own_denominators(updates):
    packed = pack_cases(pg(normaliser="token_mean"), updates=updates, policy_scores=policy_looked())
    assert len(packed.updates) == updates
    lengths = (12, 11, 11)
    for update in range(updates):
        own = [group for group in range(3) if group * updates // 3 == update]
        assert {sample_id.split(".")[0] for sample_id in samples_of(packed, update)} <= {f"r{group}" for group in own}
        assert count_of(packed, "pg", update) == sum(lengths[group] for group in own)
    whole = samples_of(pack_cases(pg(normaliser="token_mean")))
    assert set(samples_of(packed)) == set(whole)
    for sample_id, sample in samples_of(packed).items():
        # advantages are of the whole batch, and the policy before the first update is known to all
        assert sample.term_advantages["pg"].tolist() == whole[sample_id].term_advantages["pg"].tolist()
        assert sample.old_logprobs.tolist() == [-1.5] * len(sample.completion_token_ids)
        assert whole[sample_id].old_logprobs is None


def test_every_update_sees_both_domains_of_an_alternating_mixture():
    assert _deal([Candidate(rollout=None, group=group, advantage=0.0, scores=None) for group in range(8)], 8, 2) == [0, 0, 0, 0, 1, 1, 1, 1]


def test_fewer_groups_than_updates_are_dealt_by_rollout():
    composition = Composition(terms=(Term(name="bonus", objective=EntropyBonus()),))
    packed = pack_cases(composition, updates=4, num_ranks=2)
    assert [sorted(samples_of(packed, update)) for update in range(4)] == [IDS[0:3], IDS[3:5], IDS[5:7], IDS[7:9]]
    assert sum(count_of(packed, "bonus", update) for update in range(4)) == TOKENS
    assert all(len(shards) == 2 for shards in packed.updates)
    assert packed.metrics["batch/live_samples"] == 9.0


def test_one_update_needs_no_old_logprobs_though_the_learner_looked():
    assert all(sample.old_logprobs is None for sample in samples_of(pack_cases(pg(), policy_scores=policy_looked())).values())
    assert all(sample.old_logprobs is None for sample in samples_of(pack_cases(pg(), updates=3)).values())


def test_a_completion_that_the_learner_did_not_look_at_is_an_error():
    looked = policy_looked()
    del looked["r2.1"]
    with pytest.raises(ValueError, match=r"r2\.1.*learner looked"):
        pack_cases(pg(), policy_scores=looked, updates=3)


# -- ranks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 12])
@pytest.mark.parametrize("budget", [1, 15, 1000])
def test_every_sample_is_in_one_micro_batch_and_ranks_match(num_ranks, budget):
    composition = Composition(experience=DemonstrationExperience(), terms=(Term(name="ce", objective=CrossEntropy()),))
    packed = pack_cases(composition, num_ranks=num_ranks, budget=budget)
    (shards,) = packed.updates
    parts = [part for shard in shards for part in shard.micro_batches]
    assert sorted(sample.sample_id for part in parts for sample in part) == IDS
    assert len({len(shard.micro_batches) for shard in shards}) == 1 and len(shards) == num_ranks
    for part in parts:
        assert len(part) <= 1 or sum(map(num_tokens, part)) <= budget
    loads = [sum(num_tokens(sample) for part in shard.micro_batches for sample in part) for shard in shards]
    assert max(loads) - min(loads) <= 14  # the longest sample
    assert packed.metrics["batch/rank_imbalance"] == pytest.approx(max(loads) * num_ranks / sum(loads))
    assert count_of(packed, "ce") == TOKENS


def test_the_teachers_head_goes_where_its_hidden_states_go():
    head = np.zeros((3, 2), np.float32)
    packed = pack_cases(kl(), scores=make_scores(missing={(g, m) for g in range(3) for m in range(3)} - {(1, 2)}), num_ranks=2, teacher_head=head)
    heads = [shard.teacher_head for shard in packed.updates[0]]
    assert sorted(value is head for value in heads) == [False, True] and any(value is None for value in heads)
    assert make_groups()[1].rollouts[2].rollout_id in samples_of(packed)
