"""Paired tests, pass@k, relative changes and suites out of domain against hand-computed cases and scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom

from services.evaluation.paired import holm, mcnemar, paired_test, paired_tests
from services.evaluation.pass_at_k import pass_at_k, pass_at_k_estimate
from services.evaluation.relative import out_of_domain, relative_changes
from services.evaluation.report_comparisons import comparable, pairs_of_rows
from services.evaluation.retention import EvaluationError


def test_mcnemar_is_the_binomial_test_on_the_problems_that_changed():
    earlier, later = np.array([1, 0, 0, 0, 0, 0, 0, 1.0]), np.array([0, 1, 1, 1, 1, 1, 0, 1.0])
    found = paired_test(earlier, later)
    assert (found.num_gained, found.num_lost, found.method) == (5, 1, "mcnemar_exact")
    assert found.p_value == pytest.approx(2 * (1 + 6) / 64) == pytest.approx(2 * binom.cdf(1, 6, 0.5))
    assert found.difference.value == 0.5 and found.difference.low < 0.5 < found.difference.high
    assert mcnemar(0, 0) == 1.0


def test_sign_flips_by_hand():
    earlier = np.array([0.25, 0.25, 0.25])
    found = paired_test(earlier, earlier + np.array([0.5, 0.25, 0.125]))
    assert (found.method, found.p_value) == ("sign_flip_exact", 2 / 8)
    mixed = np.array([0.5, -0.25, 0.125, 0.375])
    sums = [abs(np.dot(signs, mixed)) for signs in itertools.product((-1, 1), repeat=4)]
    assert paired_test(np.full(4, 0.3), 0.3 + mixed).p_value == np.mean(np.array(sums) >= abs(mixed.sum()) - 1e-9)


def test_many_problems_are_sampled_and_swapping_negates():
    rng = np.random.default_rng(3)
    earlier = rng.random(200)
    later = earlier + rng.normal(0.0, 0.1, 200)
    there, back = paired_test(earlier, later), paired_test(later, earlier)
    assert there.method == "sign_flip_sampled" and there.p_value == back.p_value
    assert (there.difference.value, there.difference.low) == pytest.approx((-back.difference.value, -back.difference.high))
    assert paired_test(earlier, earlier + 0.01).p_value == 1 / 10000
    assert [test.p_value for test in paired_tests([(earlier, later), (later, earlier)])] == [there.p_value] * 2


def test_p_values_are_uniform_where_nothing_changed():
    rng = np.random.default_rng(5)
    found = [paired_test(*rng.random((2, 12))).p_value for _ in range(200)]
    assert 0.02 < np.mean(np.array(found) <= 0.05) < 0.09 and 0.4 < np.mean(found) < 0.6


def test_pairs_that_are_none_are_refused():
    with pytest.raises(EvaluationError, match=r"\[2, 3\]"):
        paired_test([0.0, 1.0], [0.0, 1.0, 1.0])
    with pytest.raises(EvaluationError, match="not finite"):
        paired_test([0.0, 1.0], [0.0, np.nan])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_pass_at_k_counts_the_subsets():
    for passed in range(6):
        samples = [True] * passed + [False] * (5 - passed)
        for k in range(1, 6):
            expected = np.mean([any(subset) for subset in itertools.combinations(samples, k)])
            assert pass_at_k([passed], 5, k)[0] == pytest.approx(expected, abs=1e-15)
    assert pass_at_k_estimate([0, 5, 2], 5, 1).value == pytest.approx((0 + 1 + 0.4) / 3)
    for counts, n, k in (([1], 5, 6), ([6], 5, 1), ([-1], 5, 1), ([], 5, 1)):
        with pytest.raises(ValueError):
            pass_at_k(counts, n, k)


def _row(**means):
    return {name: (np.arange(8) < 8 * mean).astype(float) for name, mean in means.items()}


def test_relative_changes_and_their_parts():
    base, last = relative_changes([_row(a=0.5, b=0.5, c=0.0), _row(a=0.75, b=0.125, c=0.5)])
    assert base["a"].value == base["a"].low == base["a"].high == 0.0
    assert (last["a"].value, last["b"].value, last["c"]) == (pytest.approx(50.0), pytest.approx(-75.0), None)
    assert (last["a"].gain().value, last["a"].forgetting().value) == (pytest.approx(50.0), 0.0)
    lost = last["b"].forgetting()
    assert (last["b"].gain().value, lost.value) == (0.0, pytest.approx(75.0)) and lost.low <= lost.value <= lost.high


def test_a_base_that_may_be_nothing_leaves_the_change_unbounded():
    found = relative_changes([_row(a=0.125), _row(a=0.5)])[1]["a"]
    assert found.value == pytest.approx(300.0) and found.high is None and found.low is not None


def test_out_of_domain_is_the_mean_over_suites_that_nothing_trains_on():
    rows = [_row(a=0.5, x=0.5, y=0.25), _row(a=1.0, x=0.25, y=0.25)]
    found = out_of_domain(rows, ["a"])
    assert found[1].score.value == 0.25 and found[1].change_from_base.value == -0.125
    assert found[1].relative_percent.value == pytest.approx(-25.0)
    assert out_of_domain(rows, ["a", "x", "y"]) is None
    assert out_of_domain([_row(x=0.0), _row(x=0.5)], ["a"])[1].relative_percent is None


def test_rows_of_another_digest_are_left_out_and_unknown_ones_noted():
    cells = {(row, name): {"problems_digest": digest} for row, digest in enumerate([None, "1", "1", "2"]) for name in ("a", "b")}
    num_rows, notes = comparable(cells, ["a", "b"], 4)
    assert num_rows == 3 and "row 3" in notes[0] and "evaluations_not_comparable" in notes[0] and "rows [0]" in notes[1]
    assert comparable({key: {"problems_digest": "1"} for key in cells}, ["a", "b"], 4) == (4, [])
    holes = {key: cell for key, cell in cells.items() if key not in ((1, "b"), (3, "a"))}
    assert comparable(holes, ["a", "b"], 4) == (num_rows, [notes[0].replace("['a', 'b']", "['b']"), notes[1]]), "what is not measured yet is passed over"
    assert pairs_of_rows(4) == [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)]
