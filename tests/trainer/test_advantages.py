"""Advantages: property T10, the baselines and scales by their formulas, penalties, and the teacher's part token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.spec.objectives import AdvantageSpec, OverlongPenalty, RewardPenalty, TokenAdvantage
from trainer.advantages import discounted_sums, outcome_advantages, overlong_penalty, reference_penalty, token_advantages

GROUPS = [[0.0, 1.0, 0.25, 1.0, 0.5], [1.0, 0.0], [0.1, 0.1, 0.1], [0.7]]
BASELINES = ("group_mean", "leave_one_out", "none")
SCALES = ("group_std", "batch_std", "none")


def _spec(baseline: str = "group_mean", scale: str = "none") -> AdvantageSpec:
    return AdvantageSpec(baseline=baseline, scale=scale)


# -- outcome ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("scale", SCALES)
def test_advantages_of_a_group_sum_to_zero(baseline, scale):
    for values in outcome_advantages(GROUPS[:3], _spec(baseline, scale)):
        assert sum(values) == pytest.approx(0.0, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    groups=st.lists(st.lists(st.integers(-1000, 1000).map(lambda score: score / 1000), min_size=2, max_size=9), min_size=1, max_size=6),
    baseline=st.sampled_from(["group_mean", "leave_one_out"]),
    scale=st.sampled_from(SCALES),
)
def test_whatever_the_scores_groups_sum_to_zero_and_keep_their_order(groups, baseline, scale):
    """T10 by random groups."""
    for scores, values in zip(groups, outcome_advantages(groups, _spec(baseline, scale)), strict=True):
        assert abs(sum(values)) <= 1e-9 * max(1.0, *map(abs, values))
        in_order = [value for _, value in sorted(zip(scores, values, strict=True))]
        assert in_order == sorted(values)
        assert len(set(scores)) > 1 or values == [0.0] * len(scores)


@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("score", [0.0, 1.0, 0.1, 1 / 3])
def test_equal_rewards_give_exactly_zero(baseline, scale, score):
    equal, _ = outcome_advantages([[score] * 7, [0.0, 1.0]], _spec(baseline, scale))
    assert equal == [0.0] * 7


def test_baselines_equal_their_formulas():
    scores = np.array(GROUPS[0])
    (mean,) = outcome_advantages(GROUPS[:1], _spec("group_mean"))
    assert mean == pytest.approx(scores - scores.mean(), abs=1e-12)
    (others,) = outcome_advantages(GROUPS[:1], _spec("leave_one_out"))
    assert others == pytest.approx([score - np.delete(scores, index).mean() for index, score in enumerate(scores)], abs=1e-12)
    assert outcome_advantages(GROUPS, _spec("none")) == GROUPS


def test_scales_equal_their_formulas():
    centred = [np.array(group) - np.mean(group) for group in GROUPS[:3]]
    by_group = outcome_advantages(GROUPS[:3], _spec(scale="group_std"))
    assert by_group[0] == pytest.approx(centred[0] / (np.std(GROUPS[0], ddof=1) + 1e-6), abs=1e-12)
    assert by_group[1] == pytest.approx(centred[1] / (0.5**0.5 + 1e-6), abs=1e-12)
    by_batch = outcome_advantages(GROUPS[:3], _spec(scale="batch_std"))
    std = np.std(np.concatenate(centred), ddof=1) + 1e-6
    for own, values in zip(by_batch, centred, strict=True):
        assert own == pytest.approx(values / std, abs=1e-12)
    # the scale follows the baseline: here it is of the raw scores
    by_raw = outcome_advantages(GROUPS[:2], _spec("none", "batch_std"))
    raw = np.concatenate(GROUPS[:2])
    assert np.concatenate(by_raw) == pytest.approx(raw / (np.std(raw, ddof=1) + 1e-6), abs=1e-12)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scale", ["group_std", "none"])
def test_a_group_of_one_keeps_its_score(baseline, scale):
    assert outcome_advantages([[0.75], []], _spec(baseline, scale)) == [[0.75], []]


def test_without_spread_nothing_is_blown_up():
    assert outcome_advantages([[1.0, 1.0]], _spec("none", "group_std")) == [[1.0, 1.0]]
    assert outcome_advantages([[0.5], [0.5]], _spec("none", "batch_std")) == [[0.5], [0.5]]


@pytest.mark.parametrize(("field", "allowed"), [("baseline", "leave_one_out"), ("scale", "batch_std")])
def test_an_unknown_word_is_refused_with_what_is_allowed(field, allowed):
    with pytest.raises(ValueError, match=f"{field} 'median' is unknown.*{allowed}"):
        outcome_advantages(GROUPS, _spec().model_copy(update={field: "median"}))


# -- penalties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "expected"), [(1, 0.0), (60, 0.0), (61, -0.05), (80, -1.0), (100, -2.0)])
def test_overlong_scores_sink_over_the_buffer(length, expected):
    spec = OverlongPenalty(buffer_tokens=40, penalty=2.0)
    assert overlong_penalty(length, 100, spec) == pytest.approx(expected, abs=1e-12)


def test_reference_penalty_is_the_sum_of_the_estimator():
    rollout, reference = np.array([-1.0, -0.5, -3.0]), np.array([-1.5, -0.25, -3.0])
    k1 = rollout - reference
    expected = {"k1": k1.sum(), "k2": (k1**2).sum() / 2, "k3": (np.exp(-k1) - 1 + k1).sum()}
    for estimator, value in expected.items():
        spec = RewardPenalty(coefficient=0.1, estimator=estimator)
        assert reference_penalty(rollout.astype(np.float32), reference.astype(np.float32), spec) == pytest.approx(-0.1 * value, abs=1e-12)


# -- tokens ----------------------------------------------------------------------------------------------------------

ROLLOUT = np.array([-1.0, -2.0, -0.5, -4.0], dtype=np.float32)
TEACHER = np.array([-0.5, -8.0, -0.75, -1.0], dtype=np.float32)
RATIOS = np.array([0.5, -6.0, -0.25, 3.0])


def _tokens(outcome: float = 0.0, *, taught: bool = True, comparable=None, **fields):
    spec = TokenAdvantage(**({"outcome_weight": 0.0, "teacher_weight": 1.0} | fields))
    return token_advantages(
        outcome, spec, num_tokens=4, rollout_logprobs=ROLLOUT, teacher_logprobs=TEACHER if taught else None, comparable=comparable
    )


def test_token_advantages_are_outcome_and_teacher():
    assert _tokens().values.tolist() == RATIOS.tolist()
    assert _tokens(2.0, outcome_weight=0.9, teacher_weight=0.1).values == pytest.approx(1.8 + 0.1 * RATIOS, abs=1e-6)
    assert _tokens(2.0, outcome_weight=0.9, teacher_weight=0.1, taught=False).values == pytest.approx([1.8] * 4, abs=1e-6)
    assert _tokens(2.0, outcome_weight=1.0, teacher_weight=0.0).values.tolist() == [2.0] * 4
    assert _tokens().values.dtype == np.float32


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.9, 1.0])
def test_future_coupling_sums_what_comes_after(gamma):
    naive = [sum(gamma ** (u - t) * RATIOS[u] for u in range(t, 4)) for t in range(4)]
    assert _tokens(future_coupling=gamma).values == pytest.approx(naive, abs=1e-6)
    assert discounted_sums(RATIOS, gamma) == pytest.approx(naive, abs=1e-12)


def test_clips_hold_each_ratio_before_the_sum_and_each_advantage_after_it():
    assert _tokens(log_ratio_clip=2.0).values.tolist() == [0.5, -2.0, -0.25, 2.0]
    held = _tokens(future_coupling=1.0, log_ratio_clip=2.0, clip=1.5)
    assert held.values.tolist() == [0.25, -0.25, 1.5, 1.5]
    assert held.clipped.tolist() == [False, False, True, True]
    assert not _tokens().clipped.any()


def test_level_sequence_is_one_number():
    assert _tokens(level="sequence").values == pytest.approx([RATIOS.mean()] * 4, abs=1e-6)
    assert _tokens(1.0, outcome_weight=0.5, level="sequence").values == pytest.approx([0.5 + RATIOS.mean()] * 4, abs=1e-6)


def test_tokens_of_another_vocabulary_say_nothing():
    comparable = np.array([True, False, True, True])
    assert _tokens(comparable=comparable, future_coupling=1.0).values.tolist() == [3.25, 2.75, 2.75, 3.0]
    assert _tokens(comparable=comparable, level="sequence").values == pytest.approx([3.25 / 3] * 4, abs=1e-6)
