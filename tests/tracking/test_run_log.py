"""The job's own log: what is final, what a restart voids, what a reader sees while it is written, and what a call costs."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from services.tracking.log import LOG, RunLog, read_metrics, read_records


def write(log: RunLog, steps, *, stage="sums", offset=0, value=float, key="loss"):
    for step in steps:
        log.metrics(stage=stage, stage_index=0, step=step, global_step=offset + step, values={key: value(step)})


def series(run_dir, **query):
    return [(point["step"], point["value"]) for point in read_metrics(run_dir, **query)]


def test_points_come_back_as_they_were_written(tmp_path):
    log = RunLog(tmp_path)
    log.metrics(stage="sums", stage_index=1, step=3, global_step=13, values={"a": np.float32(0.5), "b": 2}, timestamp_ms=1_700_000_000_123)
    log.close()
    points = read_metrics(tmp_path)
    assert [(p["key"], p["stage"], p["step"], p["global_step"], p["value"], p["time_ms"]) for p in points] == [
        ("a", "sums", 3, 13, 0.5, 1_700_000_000_123),
        ("b", "sums", 3, 13, 2.0, 1_700_000_000_123),
    ]


def test_a_rewind_voids_what_came_after_its_step_and_the_last_value_counts(tmp_path):
    log = RunLog(tmp_path)
    write(log, range(1, 6))
    log.commit(5)
    write(log, range(6, 9))
    log.close()
    log = RunLog(tmp_path)
    log.rewind(5)
    assert series(tmp_path) == [(step, float(step)) for step in range(1, 6)]
    write(log, range(6, 8), value=lambda step: -step)
    assert series(tmp_path) == [(step, float(step)) for step in range(1, 6)] + [(6, -6.0), (7, -7.0)]
    log.rewind(2)  # the checkpoints at 5 were found damaged
    assert series(tmp_path) == [(1, 1.0), (2, 2.0)]
    write(log, [3])
    log.close()
    assert series(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_line_that_is_being_written_is_left_for_later_and_a_torn_one_is_dropped(tmp_path):
    log = RunLog(tmp_path)
    write(log, [1, 2])
    log.close()
    whole = (tmp_path / LOG).read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        (tmp_path / LOG).write_bytes(whole[:-cut])
        assert series(tmp_path) == [(1, 1.0)]
    log = RunLog(tmp_path)
    write(log, [2, 3])
    log.close()
    assert series(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_readers_filter_by_key_stage_and_step(tmp_path):
    log = RunLog(tmp_path)
    write(log, [1, 2])
    write(log, [1, 2], stage="more", offset=2)
    write(log, [2], stage="more", offset=2, key="score")
    log.close()
    assert series(tmp_path, stage="more", key="loss") == [(1, 1.0), (2, 2.0)]
    assert [p["global_step"] for p in read_metrics(tmp_path, key="loss", since_step=3)] == [3, 4]
    assert series(tmp_path, stage="more", key="loss", since_step=2) == [(2, 2.0)]
    assert series(tmp_path, key="score") == [(2, 2.0)] and series(tmp_path, key="none") == []
    assert read_metrics(tmp_path / "nowhere") == []


def test_thinning_keeps_every_series_and_its_last_point(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 101):
        log.metrics(stage="sums", stage_index=0, step=step, global_step=step, values={f"m{index}": step for index in range(5)})
    log.close()
    points = read_metrics(tmp_path, max_points=50)
    assert len(points) == 50
    for index in range(5):
        steps = [p["step"] for p in points if p["key"] == f"m{index}"]
        assert steps == list(range(10, 101, 10))
    assert len(read_metrics(tmp_path, max_points=500)) == 500


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_numbers_that_are_not_finite_are_named_and_break_nothing(tmp_path, value):
    log = RunLog(tmp_path)
    log.metrics(stage=None, stage_index=None, step=0, global_step=0, values={"bad": value, "good": 1.0})
    log.table("samples", [{"score": value, "text": "half \ud800", "ids": np.array([1, 2])}], stage=None, global_step=0)
    log.close()
    assert [(p["key"], p["value"]) for p in read_metrics(tmp_path)] == [("good", 1.0)]
    records = [record for record, _ in read_records(tmp_path / LOG)]
    assert records[0]["not_finite"] == ["bad"]
    assert records[1]["rows"][0]["score"] is None


def test_a_call_costs_a_local_write(tmp_path):
    """Sixty metrics a step, as training logs them; nothing listens anywhere."""
    log = RunLog(tmp_path)
    values = {f"group/metric_{index}": index / 7 for index in range(60)}
    seconds = []
    for step in range(200):
        started = time.perf_counter()
        log.metrics(stage="sums", stage_index=0, step=step, global_step=step, values=values)
        seconds.append(time.perf_counter() - started)
    log.close()
    assert sorted(seconds)[100] < 0.005 and max(seconds) < 1.0
