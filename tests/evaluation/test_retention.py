"""Retention figures against closed forms, numpy by hand, and the bootstrap's known properties."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from services.evaluation.retention import EvaluationError, retention

STAGES = [["a"], ["b"], ["c"]]
MEANS = np.array(
    [
        [0.25, 0.50, 0.125],
        [0.75, 0.375, 0.25],
        [0.625, 0.875, 0.25],
        [0.50, 0.75, 0.625],
    ]
)


def _rows(means: np.ndarray, num_problems: int, *, noise: float = 0.0, seed: int = 0) -> list[dict[str, np.ndarray]]:
    """Rows of per-problem scores with exactly these means; each problem keeps its own difficulty over the rows."""
    generator = np.random.default_rng(seed)
    difficulty = generator.normal(0, noise, (means.shape[1], num_problems))
    difficulty -= difficulty.mean(axis=1, keepdims=True)
    return [{name: mean + difficulty[i] for i, (name, mean) in enumerate(zip("abc", row, strict=False))} for row in means]


def _binary(rng: np.random.Generator, probabilities: np.ndarray, num_problems: int) -> list[dict[str, np.ndarray]]:
    return [{name: (rng.random(num_problems) < p).astype(float) for name, p in zip("abc", row, strict=False)} for row in probabilities]


def test_every_figure_of_a_small_matrix_by_hand():
    report = retention(_rows(MEANS, 16), STAGES)
    assert report.average_score.value == pytest.approx((0.50 + 0.75 + 0.625) / 3)
    assert report.backward_transfer.value == pytest.approx(((0.50 - 0.75) + (0.75 - 0.875)) / 2)
    assert report.forgetting.value == pytest.approx(((0.75 - 0.50) + (0.875 - 0.75)) / 2)
    assert report.forward_transfer.value == pytest.approx(((0.375 - 0.50) + (0.25 - 0.125)) / 2)
    assert [gain.value for gain in report.stage_gains] == pytest.approx([0.75 - 0.25, 0.875 - 0.375, 0.625 - 0.25])
    assert {name: change.value for name, change in report.change_from_base.items()} == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})
    np.testing.assert_allclose([[cell.value for cell in row] for row in report.score_matrix], MEANS)
    assert report.num_problems == {"a": 16, "b": 16, "c": 16}
    changes = report.earlier_changes
    assert changes[0] is None
    assert [change.value for change in changes[1:]] == pytest.approx([0.625 - 0.75, ((0.50 - 0.625) + (0.75 - 0.875)) / 2])


def test_what_a_stage_did_to_earlier_domains_leaves_out_its_own_and_is_paired():
    """Stage 2 is on a again, so b alone is earlier; stage 3 on both leaves nothing."""
    report = retention(_rows(np.hstack([MEANS, MEANS[:, :1]])[:, :2], 16, noise=0.3), ["b", "a", ["a", "b"]])
    assert report.earlier_changes[0] is None and report.earlier_changes[2] is None
    change = report.earlier_changes[1]
    assert change.value == pytest.approx(0.875 - 0.375) and change.low == pytest.approx(change.high)


def test_forgetting_counts_from_the_best_row_even_the_base_models():
    means = np.array([[0.9, 0.1], [0.5, 0.1], [0.6, 0.7]])
    report = retention(_rows(means, 8), ["a", "b"])
    assert report.forgetting.value == pytest.approx(0.9 - 0.6)
    assert report.backward_transfer.value == pytest.approx(0.6 - 0.5)


def test_equal_scores_give_intervals_of_width_zero_and_never_nan():
    report = retention(_rows(MEANS, 5), STAGES)
    flat = [report.average_score, report.backward_transfer, report.forgetting, report.forward_transfer, *report.stage_gains]
    flat += [cell for row in report.score_matrix for cell in row] + list(report.change_from_base.values())
    assert all(estimate.low == pytest.approx(estimate.value) == estimate.high for estimate in flat)
    one = retention(_rows(MEANS, 1), STAGES)
    assert one.average_score.low == one.average_score.value == one.average_score.high


def test_intervals_are_paired():
    """Difficulty differs much between problems, the gain is the same for each: the interval of the gain is a point."""
    rows = _rows(MEANS, 64, noise=0.3)
    report = retention(rows, STAGES)
    assert report.stage_gains[0].high - report.stage_gains[0].low < 1e-9
    cell = report.score_matrix[1][0]
    standard_error = rows[1]["a"].std() / 8
    assert cell.high - cell.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_the_interval_of_a_gain_is_the_normal_one_for_many_problems():
    rng = np.random.default_rng(5)
    rows = _binary(rng, np.array([[0.4, 0.4, 0.4], [0.6, 0.4, 0.4]]), 2000)
    gain = retention(rows, STAGES).stage_gains[0]
    difference = rows[1]["a"] - rows[0]["a"]
    half = 1.96 * difference.std() / np.sqrt(2000)
    assert (gain.low, gain.high) == pytest.approx((difference.mean() - half, difference.mean() + half), abs=0.1 * half)


def test_the_interval_of_backward_transfer_adds_the_domains_variances():
    rng = np.random.default_rng(6)
    rows = _binary(rng, MEANS, 1000)
    found = retention(rows, STAGES).backward_transfer
    differences = [rows[3]["a"] - rows[1]["a"], rows[3]["b"] - rows[2]["b"]]
    half = 1.96 * np.sqrt(sum(d.var() / 1000 for d in differences)) / 2
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_forgetting_is_biased_upward_where_nothing_changed_and_backward_transfer_is_not():
    rng = np.random.default_rng(7)
    figures = [retention(_binary(rng, np.full((4, 3), 0.5), 100), STAGES) for _ in range(40)]
    standard_error = 0.05 / np.sqrt(40)
    assert np.mean([f.forgetting.value for f in figures]) > 0.02
    assert abs(np.mean([f.backward_transfer.value for f in figures])) < 4 * standard_error


def test_a_mixture_stage_counts_the_mean_of_its_domains_and_suites_are_only_watched():
    report = retention(_rows(MEANS[:3], 8), [["a", "b"], ["a"]])
    assert report.stage_gains[0].value == pytest.approx((0.75 + 0.375) / 2 - (0.25 + 0.50) / 2)
    assert report.backward_transfer.value == pytest.approx((0.625 + 0.875) / 2 - (0.75 + 0.375) / 2)
    assert report.average_score.value == pytest.approx((0.625 + 0.875) / 2)  # c was never trained on
    assert report.change_from_base["c"].value == pytest.approx(0.125)


@pytest.mark.parametrize(("num_rows", "gains"), [(1, 0), (2, 1)])
def test_a_job_that_has_just_begun_has_what_it_can_have(num_rows, gains):
    report = retention(_rows(MEANS[:num_rows], 8), STAGES)
    assert len(report.stage_gains) == gains
    assert (report.backward_transfer, report.forgetting, report.forward_transfer) == (None, None, None)
    assert report.average_score.value == pytest.approx(MEANS[0].mean() if num_rows == 1 else 0.75)


def _spoil(rows, fault):
    rows = [dict(row) for row in rows]
    if fault == "count":
        rows[2]["b"] = rows[2]["b"][:-1]
    elif fault == "domains":
        rows[2].pop("b")
    elif fault == "not finite":
        rows[2]["b"] = np.full(8, np.nan)
    return rows


@pytest.mark.parametrize("fault", ["count", "domains", "not finite"])
def test_rows_that_cannot_be_compared_are_refused(fault):
    with pytest.raises(EvaluationError, match="row 2") as caught:
        retention(_spoil(_rows(MEANS, 8), fault), STAGES)
    assert caught.value.reason == "evaluations_not_comparable"


def test_nothing_and_a_stage_on_an_unknown_domain_are_refused():
    with pytest.raises(EvaluationError):
        retention([], STAGES)
    with pytest.raises(ValueError, match="evaluated are"):
        retention(_rows(MEANS, 8), [["a"], ["x"], ["c"]])
    with pytest.raises(ValueError, match="3 stages"):
        retention(_rows(MEANS, 8), STAGES[:2])


def test_same_input_same_report_and_json():
    rows = _binary(np.random.default_rng(1), MEANS, 64)
    first, second = retention(rows, STAGES).to_dict(), retention([{k: v.tolist() for k, v in row.items()} for row in rows], STAGES).to_dict()
    assert json.loads(json.dumps(first)) == second
    assert first["backward_transfer"]["low"] < first["backward_transfer"]["value"] < first["backward_transfer"]["high"]


def test_domains_of_different_sizes():
    rows = [{"a": np.array([0.0, 1.0, 1.0]), "b": np.array([1.0])}, {"a": np.array([1.0, 1.0, 1.0]), "b": np.array([0.0])}]
    report = retention(rows, ["a"])
    assert report.stage_gains[0].value == pytest.approx(1 / 3)
    assert report.change_from_base["b"] == report.change_from_base["b"].__class__(-1.0, -1.0, -1.0)


def test_it_is_fast():
    rows = _binary(np.random.default_rng(1), MEANS, 512)
    retention(rows, STAGES)  # scipy is imported once
    started = time.process_time()
    retention(rows, STAGES)
    assert time.process_time() - started < 1.0
