"""Verdicts on planted differences, with p-values by enumeration and Holm's adjustment."""

from __future__ import annotations

import pytest

from services.evaluation.plots.intervals import mean_interval, stratified_interval
from services.evaluation.studies.hypotheses import comparisons, judge, sign_flip_p, verdicts
from tests.studies_report.made_records import made_study

GAINS = {"arm-0": (0.30, 0.32, 0.31), "arm-1": (0.40, 0.43, 0.40), "arm-2": (0.31, 0.31, 0.31)}


def _claim(name, expect, arm="arm-1", against="arm-0", margin=0.0, figure="gain", **more):
    return {"name": name, "claim": "c", "figure": figure, "arm": arm, "against": against, "expect": expect, "margin": margin, **more}


def _verdicts(*hypotheses, gains=GAINS, missing=()):
    study = made_study(arms=3, seeds=3, hypotheses=hypotheses)
    planned = [(arm, "order-0", seed) for arm in GAINS for seed in (1, 2, 3)]
    figures = {key: {"gain": gains[key[0]][key[2] - 1]} for key in planned if key not in missing}
    return verdicts(study, planned, figures, {})


@pytest.mark.parametrize(
    ("expect", "margin", "low", "high", "verdict"),
    [
        ("higher", 0.0, 0.01, 0.1, "seen"),
        ("higher", 0.02, 0.01, 0.1, "not_seen"),
        ("higher", 0.02, -0.1, -0.03, "contradicted"),
        ("higher", 0.02, -0.1, -0.01, "not_seen"),
        ("lower", 0.02, -0.1, -0.03, "seen"),
        ("lower", 0.02, 0.03, 0.1, "contradicted"),
        ("lower", 0.0, -0.1, 0.0, "not_seen"),
        ("similar", 0.05, -0.05, 0.05, "seen"),
        ("similar", 0.05, -0.06, 0.01, "not_seen"),
        ("similar", 0.05, 0.06, 0.2, "contradicted"),
        ("similar", 0.05, -0.2, -0.06, "contradicted"),
        ("similar", 0.05, -0.2, 0.2, "not_seen"),
    ],
)
def test_judging_an_interval(expect, margin, low, high, verdict):
    assert judge(expect, margin, low, high) == verdict


def test_planted_differences_are_found_in_their_direction():
    right, wrong, strict, alike = _verdicts(_claim("a", "higher"), _claim("b", "lower"), _claim("c", "higher", margin=0.2), _claim("d", "similar", arm="arm-2", margin=0.05))
    assert [item["verdict"] for item in (right, wrong, strict, alike)] == ["seen", "contradicted", "not_seen", "seen"]
    # differences 0.10, 0.11, 0.09: mean 0.10, sd 0.01, t(0.975, 2) = 4.3027
    half = 4.302653 * 0.01 / 3**0.5
    assert right["difference"] == {"mean": pytest.approx(0.1), "low": pytest.approx(0.1 - half, abs=1e-6), "high": pytest.approx(0.1 + half, abs=1e-6)}
    assert right["n"] == {"pairs": 3, "seeds": 3, "orders": 1} and right["p_value"] == 0.25


def test_against_nothing_is_against_zero():
    (found,) = _verdicts(_claim("a", "higher", against=None, margin=0.3))
    assert found["difference"]["mean"] == pytest.approx(0.41) and found["verdict"] == "seen"


def test_pairs_that_are_not_whole_are_named_and_fewer_than_two_are_no_data():
    missing = [("arm-0", "order-0", 1), ("arm-1", "order-0", 2)]
    (found,) = _verdicts(_claim("a", "higher"), missing=missing)
    assert found["verdict"] == "no_data" and found["n"]["pairs"] == 1 and found["p_value"] is found["p_value_holm"] is None
    assert found["left_out"] == ["arm-0/order-0-1", "arm-1/order-0-2"]


def test_holm_is_over_all_hypotheses_with_data():
    gains = {"arm-0": (0.0, 0.0, 0.0), "arm-1": (1.0, 2.0, -1.0), "arm-2": (1.0, 1.0, 1.0)}
    found = _verdicts(_claim("a", "higher"), _claim("b", "higher", arm="arm-2"), _claim("c", "higher", figure="early_gain"), gains=gains)
    assert [item["p_value"] for item in found] == [0.75, 0.25, None]
    assert [item["p_value_holm"] for item in found] == [0.75, 0.5, None]


def test_a_comparison_has_the_difference_of_a_hypothesis_and_no_verdict():
    study = made_study(arms=3, seeds=3, orders=2, hypotheses=(_claim("a", "higher"),), comparisons=({"name": "b", "claim": "c", "figure": "gain", "arm": "arm-1", "against": "arm-0"},))
    planned = [(arm, order, seed) for arm in GAINS for order in ("order-0", "order-1") for seed in (1, 2, 3)]
    figures = {key: {"gain": GAINS[key[0]][key[2] - 1] * (3.0 if key[1] == "order-1" else 1.0)} for key in planned if key != ("arm-1", "order-1", 3)}
    (judged,), (shown,) = verdicts(study, planned, figures, {}), comparisons(study, planned, figures, {})
    # order-0: 0.10, 0.11, 0.09; order-1: 0.30, 0.33
    assert shown["by_order"] == {"order-0": pytest.approx(0.1), "order-1": pytest.approx(0.315)} and shown["difference"]["mean"] == pytest.approx(0.2075)
    assert {"verdict", "p_value", "p_value_holm", "expect", "margin"}.isdisjoint(shown)
    assert all(judged[key] == shown[key] for key in ("difference", "by_order", "n", "pairs", "left_out")) and shown["left_out"] == ["arm-1/order-1-3"]


def test_sign_flips_by_hand():
    assert sign_flip_p([1.0, 1.0, 1.0]) == 0.25 and sign_flip_p([1.0, 2.0, -1.0]) == 0.75 and sign_flip_p([0.0, 0.0]) == 1.0
    assert sign_flip_p([0.1] * 14) == 2 / 2**14
    assert 1e-4 <= sign_flip_p([0.1] * 15) <= 6e-4  # drawn: 2 / 2^15 is expected


def test_orders_weigh_the_same_and_their_difference_is_no_noise():
    found = stratified_interval([[0.1, 0.2, 0.3, 0.2], [0.6, 0.8]])
    # means 0.2 and 0.7; squares within 0.02 + 0.02 over 4 degrees of freedom; t(0.975, 4) = 2.7764
    half = 2.776445 * (0.01 * (1 / 4 + 1 / 2)) ** 0.5 / 2
    assert found == {"mean": pytest.approx(0.45), "low": pytest.approx(0.45 - half, abs=1e-6), "high": pytest.approx(0.45 + half, abs=1e-6), "n": 6}
    assert stratified_interval([[0.1, 0.4, 0.2]]) == pytest.approx(mean_interval([0.1, 0.4, 0.2]))
    assert stratified_interval([[0.1], [0.4]]) == {"mean": 0.25, "low": None, "high": None, "n": 2}


def test_equal_values_of_few_pairs_show_nothing():
    same = {"arm-0": (0.0, 0.0, 0.0), "arm-1": (0.25, 0.25, 0.25), "arm-2": (0.0, 0.0, 0.0)}
    (found,) = _verdicts(_claim("a", "higher"), gains=same)
    assert found["verdict"] == "not_seen" and found["difference"]["low"] == found["difference"]["high"] == 0.25


def test_an_interval_needs_two_values():
    assert mean_interval([]) == {"mean": None, "low": None, "high": None, "n": 0}
    assert mean_interval([0.5]) == {"mean": 0.5, "low": None, "high": None, "n": 1}
    found = mean_interval([0.0, 1.0])  # t(0.975, 1) = 12.7062, sd / sqrt(2) = 0.5
    assert (found["low"], found["high"]) == (pytest.approx(0.5 - 6.3531, abs=1e-3), pytest.approx(0.5 + 6.3531, abs=1e-3))
