"""Group advantages: property T10 and the edge cases that decide whether a group teaches anything."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from trainer.advantages import group_advantages

STD = SimpleNamespace(baseline="group_mean", scale="group_std")
NONE = SimpleNamespace(baseline="group_mean", scale="none")


def test_advantages_equal_the_formula_and_sum_to_zero():
    scores = [0.0, 1.0, 0.25, 1.0, 0.5]
    expected = (np.array(scores) - np.mean(scores)) / (np.std(scores, ddof=1) + 1e-6)
    assert group_advantages(scores, STD) == pytest.approx(expected, abs=1e-12)
    assert sum(group_advantages(scores, STD)) == pytest.approx(0.0, abs=1e-12)
    assert group_advantages(scores, NONE) == pytest.approx(np.array(scores) - np.mean(scores), abs=1e-12)


@pytest.mark.parametrize("score", [0.0, 1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("spec", [STD, NONE])
def test_equal_rewards_give_exactly_zero(score, spec):
    assert group_advantages([score] * 7, spec) == [0.0] * 7


@pytest.mark.parametrize("spec", [STD, NONE])
def test_a_group_of_one_keeps_its_score(spec):
    assert group_advantages([0.75], spec) == [0.75]
    assert group_advantages([], spec) == []


def test_an_unknown_scale_is_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="group_std or none"):
        group_advantages([1.0, 0.0], SimpleNamespace(baseline="group_mean", scale="batch_std"))
