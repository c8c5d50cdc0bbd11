"""Packing: token weights and denominators by their definitions, masks, targets, supports, advantages and their metrics."""

from __future__ import annotations

import numpy as np
import pytest
from packing_cases import (
    LENGTHS,
    TOKENS,
    K,
    count_of,
    kl,
    make_scores,
    make_verdicts,
    pack_cases,
    per_rollout,
    pg,
    policy_looked,
    samples_of,
)

from cluster.spec.composition import Composition, Term
from cluster.spec.contexts import SiblingSolution
from cluster.spec.masks import EntropyQuantileMask, EntropyThresholdMask, PrefixMask, RandomMask, SkipFirstMask, TruncatedMask
from cluster.spec.objectives import (
    AdvantageSpec,
    EntropyBonus,
    ForwardKL,
    OverlongPenalty,
    PolicyGradient,
    ReverseKL,
    RewardPenalty,
    TokenAdvantage,
)
from cluster.spec.supports import TopKSupport
from cluster.spec.teachers import EmaTeacher, ExternalTeacher

FLAT = [length for of_group in LENGTHS for length in of_group]


def _bonus(**fields) -> Composition:
    """A term that every completion has, whatever its score."""
    return Composition(terms=(Term(name="bonus", objective=EntropyBonus(), **fields),))


def _weighted_sum(packed, name: str) -> float:
    """What a term whose value is 1 at every token would come to."""
    total = sum(float(sample.term_weights[name].sum()) for sample in samples_of(packed).values() if name in sample.term_weights)
    return total / count_of(packed, name)


# -- normalisers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ({"normaliser": "token_mean"}, 1.0),
        ({"normaliser": "sequence_mean"}, 1.0),
        ({"normaliser": "sequence_sum"}, TOKENS / 9),
        ({"normaliser": "constant"}, TOKENS / (9 * 8)),
        ({"normaliser": "constant", "normaliser_tokens": 5}, TOKENS / (9 * 5)),
    ],
)
def test_normalisers_equal_their_definitions(fields, value):
    packed = pack_cases(_bonus(**fields))
    assert _weighted_sum(packed, "bonus") == pytest.approx(value, rel=1e-6)
    for sample in samples_of(packed).values():
        weights = sample.term_weights["bonus"]
        expected = 1 / len(weights) if fields["normaliser"] == "sequence_mean" else 1.0
        assert weights.dtype == np.float32 and weights.tolist() == pytest.approx([expected] * len(weights))


def test_dr_grpo_weighs_a_token_the_same_at_every_length():
    """T10: with normaliser constant; with sequence_mean a token of a short completion weighs more."""
    by_length = {}
    for normaliser in ("constant", "sequence_mean"):
        packed = pack_cases(pg(AdvantageSpec(scale="none"), normaliser=normaliser))
        count = count_of(packed, "pg")
        by_length[normaliser] = {len(s.completion_token_ids): float(s.term_weights["pg"][0]) / count for s in samples_of(packed).values()}
    assert set(by_length["constant"].values()) == {1.0 / (9 * 8)} and len(by_length["constant"]) > 2
    assert by_length["sequence_mean"][1] == pytest.approx(8 * by_length["sequence_mean"][8])


@pytest.mark.parametrize("scale", ["group_std", "batch_std", "none"])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_advantages_of_every_group_sum_to_zero(baseline, scale):
    """T10, through packing: dropped samples have exactly zero."""
    samples = samples_of(pack_cases(pg(AdvantageSpec(baseline=baseline, scale=scale))))
    for group in range(3):
        own = [float(sample.term_advantages["pg"][0]) for name, sample in samples.items() if name.startswith(f"r{group}.")]
        assert sum(own) == pytest.approx(0.0, abs=1e-6)
        assert bool(own) == (group != 1)


# -- masks -----------------------------------------------------------------------------------------------------------


def test_skipped_tokens_have_no_weight_and_are_not_counted():
    masks = (SkipFirstMask(tokens=3),)
    packed = pack_cases(_bonus(masks=masks))
    samples = samples_of(packed)
    assert samples["r2.1"].term_weights["bonus"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert sorted(samples) == ["r0.0", "r0.2", "r1.2", "r2.1"]
    assert count_of(packed, "bonus") == (1 + 3) + 2 + 5
    assert packed.metrics["mask/bonus/skip_first/kept_share"] == pytest.approx(11 / TOKENS)
    assert packed.metrics["density/bonus"] == pytest.approx(11 / TOKENS)
    by_sequence = pack_cases(_bonus(masks=masks, normaliser="sequence_mean"))
    assert samples_of(by_sequence)["r2.1"].term_weights["bonus"].tolist() == pytest.approx([0, 0, 0, 0.2, 0.2, 0.2, 0.2, 0.2])
    # a completion without a counted token is no sequence
    assert count_of(by_sequence, "bonus") == 4.0


def test_masks_multiply_and_each_reports_what_it_alone_kept():
    packed = pack_cases(_bonus(masks=(SkipFirstMask(tokens=1), PrefixMask(start_tokens=2, tokens_per_step=0.5), TruncatedMask())), step=3)
    samples = samples_of(packed)
    assert samples["r0.0"].term_weights["bonus"].tolist() == [0, 1, 1, 0]
    assert "r2.1" not in samples  # it reached the limit
    assert packed.metrics["mask/bonus/skip_first/kept_share"] == pytest.approx((TOKENS - 9) / TOKENS)
    assert packed.metrics["mask/bonus/prefix/kept_share"] == pytest.approx(sum(min(3, n) for n in FLAT) / TOKENS)
    assert packed.metrics["mask/bonus/truncated/kept_share"] == pytest.approx((TOKENS - 8) / TOKENS)
    counted = sum(max(min(3, n) - 1, 0) for n in FLAT if n != 8)
    assert count_of(packed, "bonus") == counted and packed.metrics["density/bonus"] == pytest.approx(counted / TOKENS)


@pytest.mark.parametrize("normaliser", ["token_mean", "sequence_mean"])
def test_a_random_mask_has_two_denominators(normaliser):
    """T12: by kept tokens the mean stays 1; by all tokens the signal thins with the kept fraction."""
    packed = {
        name: pack_cases(_bonus(masks=(RandomMask(ratio=0.5, denominator=name),), normaliser=normaliser)) for name in ("kept", "all")
    }
    kept = {name: int((sample.term_weights["bonus"] > 0).sum()) for name, sample in samples_of(packed["all"]).items()}
    assert 0 < sum(kept.values()) < TOKENS
    for batch in packed.values():
        assert batch.metrics["mask/bonus/random/kept_share"] == pytest.approx(sum(kept.values()) / TOKENS)
        assert batch.metrics["density/bonus"] == pytest.approx(sum(kept.values()) / TOKENS)
    assert _weighted_sum(packed["kept"], "bonus") == pytest.approx(1.0, rel=1e-6)
    if normaliser == "token_mean":
        assert count_of(packed["kept"], "bonus") == sum(kept.values()) and count_of(packed["all"], "bonus") == TOKENS
    else:
        lengths = {name: len(sample.completion_token_ids) for name, sample in samples_of(packed["all"]).items()}
        assert count_of(packed["all"], "bonus") == 9.0 and count_of(packed["kept"], "bonus") == len(kept)
        assert _weighted_sum(packed["all"], "bonus") == pytest.approx(sum(kept[name] / lengths[name] for name in kept) / 9, rel=1e-6)


@pytest.mark.parametrize("denominator", ["kept", "all"])
def test_mask_ratio_zero_is_off(denominator):
    """T12"""
    plain, masked = pack_cases(_bonus()), pack_cases(_bonus(masks=(RandomMask(ratio=0.0, denominator=denominator),)))
    assert masked.metrics["mask/bonus/random/kept_share"] == 1.0 and count_of(masked, "bonus") == count_of(plain, "bonus")
    for name, sample in samples_of(plain).items():
        assert samples_of(masked)[name].term_weights["bonus"].tolist() == sample.term_weights["bonus"].tolist()


def test_other_masks_count_out_beside_a_random_mask_over_all_tokens():
    packed = pack_cases(_bonus(masks=(SkipFirstMask(tokens=2), RandomMask(ratio=0.5, denominator="all"))))
    assert count_of(packed, "bonus") == sum(max(length - 2, 0) for length in FLAT)


def test_entropy_masks_read_the_learners_look_and_the_teachers_scores():
    looked = policy_looked(lambda length: np.arange(length, dtype=np.float32))
    packed = pack_cases(_bonus(masks=(EntropyQuantileMask(of="policy", keep=0.25),)), policy_scores=looked)
    assert samples_of(packed)["r2.1"].term_weights["bonus"].tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    assert count_of(packed, "bonus") == sum(-(-length // 4) for length in FLAT)
    scores = make_scores(missing={(0, 0)}, entropies=lambda rollout: np.arange(len(rollout.completion.token_ids), dtype=np.float32))
    packed = pack_cases(kl(masks=(EntropyThresholdMask(above_nats=3.5),)), scores=scores)
    assert {name: int(s.term_weights["kl"].sum()) for name, s in samples_of(packed).items()} == {"r0.2": 2, "r1.2": 1, "r2.1": 4}
    assert count_of(packed, "kl") == 7.0


# -- targets ---------------------------------------------------------------------------------------------------------


def test_samples_without_target_count_only_where_asked():
    scores = make_scores(missing={(0, 0), (2, 1)})
    head = np.zeros((3, 2), np.float32)
    packed = pack_cases(kl(), scores=scores, teacher_head=head)
    assert set(samples_of(packed)).isdisjoint({"r0.0", "r2.1"}) and len(samples_of(packed)) == 7
    assert count_of(packed, "kl") == 34 - 4 - 8
    assert packed.metrics["batch/target_share"] == pytest.approx(7 / 9)
    assert packed.metrics["density/kl"] == pytest.approx(22 / 34)
    assert packed.updates[0][0].teacher_head is head
    assert count_of(pack_cases(kl(count_missing_targets=True), scores=scores), "kl") == 34
    assert count_of(pack_cases(kl(normaliser="sequence_mean", count_missing_targets=True), scores=scores), "kl") == 9
    assert count_of(pack_cases(kl(normaliser="sequence_mean"), scores=scores), "kl") == 7
    # the masks of a sample that is only counted thin its share too, and are not reported
    masked = pack_cases(kl(masks=(SkipFirstMask(tokens=3),), count_missing_targets=True), scores=scores)
    assert count_of(masked, "kl") == 11 and masked.metrics["mask/kl/skip_first/kept_share"] == pytest.approx(5 / 22)


def test_a_fallback_sees_only_what_the_teacher_does_not():
    terms = (Term(name="kl", objective=ForwardKL()), Term(name="bonus", objective=EntropyBonus(), samples="without_target"))
    composition = Composition(teacher=EmaTeacher(), context=SiblingSolution(), terms=terms)
    packed = pack_cases(composition, scores=make_scores(missing={(0, 0), (2, 1)}))
    assert {name for name, sample in samples_of(packed).items() if "bonus" in sample.term_weights} == {"r0.0", "r2.1"}
    assert {name for name, sample in samples_of(packed).items() if "kl" in sample.term_weights}.isdisjoint({"r0.0", "r2.1"})
    assert (count_of(packed, "bonus"), count_of(packed, "kl")) == (12.0, 22.0)


@pytest.mark.parametrize(("counted", "expected"), [(False, 22.0), (True, 34.0)])
def test_with_target_is_for_terms_that_need_none(counted, expected):
    bonus = Term(name="bonus", objective=EntropyBonus(), samples="with_target", count_missing_targets=counted)
    composition = Composition(teacher=EmaTeacher(), terms=(Term(name="kl", objective=ForwardKL()), bonus))
    packed = pack_cases(composition, scores=make_scores(missing={(0, 0), (2, 1)}))
    assert set(samples_of(packed)).isdisjoint({"r0.0", "r2.1"}) and count_of(packed, "bonus") == expected


def test_tokens_of_another_vocabulary_are_left_out_of_every_teacher_term():
    terms = (Term(name="kl", objective=ForwardKL()), Term(name="bonus", objective=EntropyBonus()))
    composition = Composition(teacher=ExternalTeacher(path="elsewhere"), terms=terms)
    packed = pack_cases(composition, scores=make_scores(missing={(0, 0)}), masked_token_ids={"": frozenset({1, 2, 99})})
    samples = samples_of(packed)
    assert samples["r1.0"].term_weights["kl"].tolist() == [1, 0, 0]
    assert samples["r1.0"].term_weights["bonus"].tolist() == [1, 1, 1]
    assert samples["r0.0"].term_weights["bonus"].tolist() == [1, 1, 1, 1]
    # ids 1 and 2 are only in the first rollouts of groups 1 and 2 that were scored: tokens 0, 1, 2 and 0
    assert count_of(packed, "kl") == 34 - 4 - 2 and count_of(packed, "bonus") == 34
    assert packed.metrics["teacher/masked_vocabulary_share"] == pytest.approx(2 / 30)


@pytest.mark.parametrize(("masked", "kept"), [({"other": frozenset({1, 2})}, [1, 1, 1]), ({"d": frozenset({1, 2})}, [1, 0, 0])])
def test_a_vocabulary_is_masked_in_the_domain_of_its_own_teacher_alone(masked, kept):
    composition = Composition(teacher=ExternalTeacher(path="elsewhere"), terms=(Term(name="kl", objective=ForwardKL()),))
    packed = pack_cases(composition, scores=make_scores(), masked_token_ids=masked)
    assert samples_of(packed)["r1.0"].term_weights["kl"].tolist() == kept


# -- supports --------------------------------------------------------------------------------------------------------


def _top(**fields) -> Composition:
    return Composition(teacher=EmaTeacher(), terms=(Term(name="kl", objective=ReverseKL(), support=TopKSupport(k=K, **fields)),))


@pytest.mark.parametrize("width", [K, K + 1])
def test_the_sampled_token_joins_the_rollouts_support_whoever_made_the_ids(width):
    """The lead may send ids with the sampled token to the teacher, which sends log-probabilities back without ids."""
    scores = make_scores(support_logprobs=lambda rollout: np.full((len(rollout.completion.token_ids), width), -2.0, np.float32))
    sample = samples_of(pack_cases(_top(join_sampled=True), scores=scores))["r0.1"]
    assert sample.support_ids.tolist() == [[0, 1, 2, 3, 10], [0, 1, 2, 3, 11]] and sample.support_ids.dtype == np.int32
    assert sample.teacher_support_logprobs.shape == (2, K + 1)
    assert sample.teacher_support_logprobs[:, -1].tolist() == [-2.0, -2.0]


def test_the_teachers_own_support_comes_with_its_scores():
    own = make_scores(support_ids=lambda rollout: np.full((len(rollout.completion.token_ids), K), 7, np.int32))
    assert samples_of(pack_cases(_top(support_from="teacher"), scores=own))["r0.1"].support_ids.tolist() == [[7] * K] * 2
    assert samples_of(pack_cases(_top(support_from="rollout"), scores=make_scores()))["r0.1"].support_ids.tolist() == [[0, 1, 2, 3]] * 2
    of_policy = samples_of(pack_cases(_top(support_from="policy"), scores=make_scores()))["r0.1"]
    assert of_policy.support_ids is None and of_policy.teacher_support_logprobs is None and of_policy.teacher_hidden.shape == (2, 2)


def test_a_support_that_does_not_fit_is_refused():
    wide = make_scores(support_logprobs=lambda rollout: np.zeros((len(rollout.completion.token_ids), K + 2), np.float32))
    with pytest.raises(ValueError, match="support ids are"):
        pack_cases(_top(), scores=wide)
    with pytest.raises(ValueError, match="no log-probabilities"):
        pack_cases(_top(), scores=make_scores(support_logprobs=None))


# -- advantages ------------------------------------------------------------------------------------------------------


def _blend(**fields) -> Composition:
    advantage = TokenAdvantage(**fields)
    return Composition(
        teacher=EmaTeacher(),
        advantage=AdvantageSpec(scale="none"),
        terms=(Term(name="blend", objective=PolicyGradient(advantage=advantage)),),
    )


def test_the_teachers_advantage_is_the_log_ratio_to_the_rollout():
    packed = pack_cases(_blend(outcome_weight=0.5, teacher_weight=0.25, clip=0.3), scores=make_scores(missing={(0, 1), (1, 0)}))
    samples = samples_of(packed)
    # the teacher's -2 against the rollout's -1; group 0 has advantages -0.5, 0.5, 0
    assert samples["r0.0"].term_advantages["blend"].tolist() == pytest.approx([-0.3] * 4)
    assert samples["r0.2"].term_advantages["blend"].tolist() == pytest.approx([-0.25] * 6)
    assert samples["r0.1"].term_advantages["blend"].tolist() == pytest.approx([0.25] * 2)  # without a target the outcome is left
    assert samples["r0.1"].teacher_logprobs is None
    assert "r1.0" not in samples and samples["r1.1"].term_advantages["blend"].tolist() == pytest.approx([-0.25] * 3)
    assert count_of(packed, "blend") == TOKENS
    clipped = sum(FLAT[index] for index in (0, 6, 8))  # below -0.3: those that lost in groups 0 and 2
    assert packed.metrics["advantage/blend/clipped_share"] == pytest.approx(clipped / TOKENS)
    assert packed.metrics["advantage/mean"] == pytest.approx(0.0, abs=1e-12)


def test_an_advantage_of_the_teacher_alone_needs_a_target():
    packed = pack_cases(_blend(outcome_weight=0.0, teacher_weight=1.0), scores=make_scores(missing={(0, 1)}))
    assert "r0.1" not in samples_of(packed) and count_of(packed, "blend") == TOKENS - 2
    agreeing = make_scores(logprobs=lambda rollout: rollout.completion.logprobs)
    assert samples_of(pack_cases(_blend(outcome_weight=0.0, teacher_weight=1.0), scores=agreeing)) == {}


def test_metrics_of_advantages_are_over_the_tokens_that_the_term_keeps():
    packed = pack_cases(pg(AdvantageSpec(scale="none"), masks=(TruncatedMask(),)))
    per_token = np.concatenate(
        [np.full(n, a) for n, a in zip(FLAT, [-0.5, 0.5, 0, 0, 0, 0, -1 / 3, 2 / 3, -1 / 3], strict=True) if n != 8]
    )
    assert packed.metrics["advantage/pg/mean"] == pytest.approx(per_token.mean(), abs=1e-7)
    assert packed.metrics["advantage/pg/std"] == pytest.approx(per_token.std(), abs=1e-7)
    assert packed.metrics["advantage/pg/clipped_share"] == 0.0
    assert "advantage/mean" not in pack_cases(_bonus()).metrics


def test_penalties_change_the_scores_that_advantages_are_formed_of():
    spec = AdvantageSpec(scale="none", overlong=OverlongPenalty(buffer_tokens=4, penalty=2.0))
    packed = pack_cases(pg(spec), verdicts=make_verdicts(scores=((1.0,) * 3,) * 3))
    shaped = np.array([[-2.0 * max(n - 4, 0) / 4 for n in of_group] for of_group in LENGTHS])
    expected = shaped - shaped.mean(1, keepdims=True)
    samples = samples_of(packed)
    for group in range(3):
        for member in range(3):
            assert samples[f"r{group}.{member}"].term_advantages["pg"][0] == pytest.approx(expected[group, member])
    assert packed.metrics["advantage/overlong_penalty_mean"] == pytest.approx(shaped.mean())
    assert packed.metrics["rollout/score_mean"] == 1.0


def test_the_reference_penalty_is_in_the_reward():
    spec = AdvantageSpec(scale="none", reference_penalty=RewardPenalty(coefficient=0.1))
    reference = per_rollout(lambda rollout: np.full(len(rollout.completion.token_ids), -1.5, np.float32))
    packed = pack_cases(pg(spec), verdicts=make_verdicts(scores=((1.0,) * 3,) * 3), reference_logprobs=reference)
    # k1 is 0.5 at every token
    expected = -0.05 * (np.array(LENGTHS[0]) - np.mean(LENGTHS[0]))
    got = [samples_of(packed).get(f"r0.{member}") for member in range(3)]
    assert [0.0 if sample is None else float(sample.term_advantages["pg"][0]) for sample in got] == pytest.approx(expected, abs=1e-7)
    assert packed.metrics["advantage/reference_penalty_mean"] == pytest.approx(-0.05 * TOKENS / 9)
