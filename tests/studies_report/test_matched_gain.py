"""Drift where two runs have gained the same: interpolation by hand."""

from __future__ import annotations

import pytest

from services.evaluation.plots.runs import Run
from services.evaluation.studies.matched_gain import drift_at_gain, matched_gain, matched_steps, stage_path
from tests.studies_report.made_records import made_report, point


def _run(inside: float, end: float, drifts: tuple[float, float], *, second_end: float = 0.11) -> Run:
    """Two stages from scores 0.2 and 0.1; drift at steps 20 and 60, in the second stage at its end alone."""
    stages = [{"name": name, "domains": [name], "steps": 60} for name in ("arithmetic", "strings")]
    during = [{"stage": "arithmetic", "stage_index": 0, "step": 20, "global_step": 20, "domain": "arithmetic", "mean": inside, "truncation_rate": 0.0}]
    parameters = [point(0, 20, drifts[0], drifts[0]), point(0, 60, drifts[1], drifts[1]), point(1, 60, 0.5, 0.08)]
    means = [[0.2, 0.1], [end, 0.1], [end, second_end]]
    return Run("arm", "order", 1, made_report(stages, ["arithmetic", "strings"], means, during=during, parameters=parameters), (("arithmetic",), ("strings",)))


def test_a_path_begins_at_nothing():
    assert stage_path(_run(0.3, 0.6, (0.01, 0.03)), 0) == [(0, 0.0, 0.0), (20, pytest.approx(0.1), 0.01), (60, pytest.approx(0.4), 0.03)]


def test_drift_is_read_off_where_the_path_first_gets_there():
    path = [(0, 0.0, 0.0), (20, 0.2, 0.02), (40, 0.1, 0.05), (60, 0.4, 0.08)]
    assert drift_at_gain(path, 0.1) == pytest.approx(0.01)  # on the way up, not on the way back
    assert drift_at_gain(path, 0.2) == pytest.approx(0.02)
    assert drift_at_gain(path, 0.25) == pytest.approx(0.05 + 0.03 * 0.5)
    assert drift_at_gain(path, 0.41) is None


def test_the_level_is_nine_tenths_of_what_both_reached():
    slow, fast = _run(0.3, 0.6, (0.01, 0.03)), _run(0.4, 0.5, (0.04, 0.06))  # gains 0.1, 0.4 and 0.2, 0.3: level 0.27
    found = matched_gain(slow, fast)
    assert found.one == pytest.approx(0.01 + 0.02 * 0.17 / 0.3) and found.other == pytest.approx(0.04 + 0.02 * 0.7)
    assert (found.num_stages, found.num_left_out) == (1, 1)  # the second stage gained 0.01 in both
    swapped = matched_gain(fast, slow)
    assert (swapped.one, swapped.other) == (found.other, found.one)


def test_a_stage_that_one_run_did_not_learn_is_left_out():
    found = matched_gain(_run(0.3, 0.6, (0.01, 0.03), second_end=0.5), _run(0.1, 0.2, (0.04, 0.06), second_end=0.5))
    assert (found.num_stages, found.num_left_out) == (1, 1) and found.one == found.other == pytest.approx(0.9 * 0.08)
    nothing = matched_gain(_run(0.1, 0.1, (0.1, 0.1)), _run(0.1, 0.1, (0.1, 0.1)))
    assert (nothing.one, nothing.other, nothing.num_left_out) == (None, None, 2)


def test_a_gain_within_the_noise_is_left_out():
    found = matched_gain(*[_run(0.25, 0.31, (0.01, 0.03))] * 2)  # 0.9 x 0.11 is below 0.1
    assert (found.num_stages, found.num_left_out) == (0, 2)


def test_at_the_same_steps():
    found = matched_steps(_run(0.3, 0.6, (0.01, 0.03)), _run(0.4, 0.5, (0.04, 0.06)))
    assert found.one == pytest.approx((0.02 + 0.08) / 2) and found.other == pytest.approx((0.05 + 0.08) / 2)
    assert (found.num_stages, found.num_left_out) == (2, 0)
