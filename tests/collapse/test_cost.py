"""The watch costs less than 3 % of a step of the demonstration job: 0.7 s, 128 completions."""

from __future__ import annotations

import json
import statistics
import time

from services.evaluation.collapse import CollapseWatch
from tests.collapse.recorded import load

STEP_S = 0.7


def test_cost_of_a_step():
    watch = CollapseWatch()
    watch.begin_stage("strings")
    seconds = []
    for step in load("healthy-sdpo"):  # 6 tokens a completion; then 32
        started = time.process_time()
        watch.observe(step.step, step.metrics, step.groups)
        seconds.append(time.process_time() - started)
    assert statistics.median(seconds) < 0.03 * STEP_S
    seconds.clear()
    for step in load("collapse-hard")[80:]:
        started = time.process_time()
        watch.observe(step.step, step.metrics, step.groups)
        seconds.append(time.process_time() - started)
    assert statistics.median(seconds) < 0.03 * STEP_S
    assert len(json.dumps(watch.state())) < 1_000_000
