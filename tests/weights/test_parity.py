"""The parity probe's arithmetic and bounds, without an engine."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import ParityError
from cluster.messages import Completion
from services.weights.parity import ParityProbe, max_abs_difference

PROMPTS = [np.array([4, 5], dtype=np.int32), np.array([6], dtype=np.int32)]


def answer(*logprobs: list[float]) -> list[tuple[Completion, ...]]:
    return [
        (
            Completion(
                token_ids=np.arange(len(values), dtype=np.int32),
                logprobs=np.asarray(values, dtype=np.float32),
                finish_reason="length",
                policy_version=3,
            ),
        )
        for values in logprobs
    ]


def test_samples_of_all_workers_stand_in_one_row_of_sequences():
    probe = ParityProbe([], PROMPTS)
    sample = probe.collect([answer([-1.0, -2.0], [-3.0]), answer([-1.0, -2.5], [-3.0])])
    assert [prompt.tolist() for prompt in sample.prompts] == [[4, 5], [6], [4, 5], [6]]
    learner = [np.array([-1.0, -2.0]), np.array([-3.0])] * 2
    assert max_abs_difference(sample.engine_logprobs, learner) == pytest.approx(0.5)
    with pytest.raises(ParityError) as caught:
        probe.compare(sample, learner)
    assert caught.value.details == {"max_abs_nats": 0.5, "bound_nats": 1e-3, "policy_versions": [3]}


def test_the_bound_and_the_maximum():
    probe = ParityProbe([], PROMPTS, bound_nats=0.25)
    sample = probe.collect([answer([-1.0, -2.0], [-3.0])])
    assert probe.compare(sample, [np.array([-1.125, -2.0]), np.array([-3.0])]) == 0.125
    assert probe.compare(sample, [np.array([-1.0, -2.0625]), np.array([-3.0])]) == 0.0625
    assert probe.max_abs_nats == 0.125


def test_a_value_that_is_not_a_number_never_passes():
    probe = ParityProbe([], PROMPTS, bound_nats=1e9)
    sample = probe.collect([answer([-1.0, float("nan")], [-3.0])])
    with pytest.raises(ParityError):
        probe.compare(sample, [np.array([-1.0, -2.0]), np.array([-3.0])])


def test_other_tokens_are_not_compared():
    sample = ParityProbe([], PROMPTS).collect([answer([-1.0, -2.0], [-3.0])])
    with pytest.raises(ValueError, match="not of the same tokens"):
        max_abs_difference(sample.engine_logprobs, [np.array([-1.0]), np.array([-3.0])])


def test_in_bfloat16_the_bound_comes_from_a_fresh_engine():
    probe = ParityProbe([], PROMPTS)
    sample = probe.collect([answer([-1.0, -2.0], [-3.0])])
    assert probe.calibrate(sample, [np.array([-1.0, -2.25]), np.array([-3.0])]) == pytest.approx(0.3)
    assert probe.calibrate(sample, [np.array([-1.0, -2.125]), np.array([-3.0])]) == pytest.approx(0.3)
    assert probe.compare(sample, [np.array([-1.0, -2.28]), np.array([-3.0])]) == pytest.approx(0.28, abs=1e-6)
    with pytest.raises(ParityError):
        probe.compare(sample, [np.array([-1.0, -2.31]), np.array([-3.0])])
