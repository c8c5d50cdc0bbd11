"""Records of members: which members have one, and that a folder of them loses no result."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from services.jobs import study_records
from services.jobs.records import MemberRecord
from services.jobs.study_records import member_record, read_records, record_problem, write_records

MEMBER = {
    "position": 0, "arm": "a", "order": "o", "seed": 1, "digest": "d" * 64, "job_id": "job_1", "status": "succeeded", "reason": None,
    "message": None, "started_at": None, "finished_at": None, "steps_done": 1, "steps_total": 1, "recorded": False, "inputs": {"/stages/0/domain": "f"},
}


def _of_member(run_dir: Path, **changes) -> dict | None:
    return member_record("s", MemberRecord(**(MEMBER | changes)), run_dir=run_dir, machine={})


def _record(**changes) -> dict:
    return {
        "format": 1, "study": "s", "arm": "a", "order": "o", "seed": 1, "digest": "d" * 64, "model_sha256": None, "status": "succeeded",
        "job_id": "job_1", "report": {"format": 2}, **changes,
    }


def test_a_member_whose_report_is_gone_has_no_record(tmp_path):
    assert _of_member(tmp_path) is None
    assert _of_member(tmp_path, status="failed")["report"] is None, "a run that failed early has none"
    (tmp_path / "report.json").write_text('{"format": 2, "half')
    assert _of_member(tmp_path) is None
    (tmp_path / "report.json").write_text('{"format": 2, "comparisons": {}, "mean": 0.33333333}')
    found = _of_member(tmp_path)
    assert (found["report"], found["inputs"]) == ({"format": 2, "mean": 0.333333}, {"/stages/0/domain": "f"})
    assert record_problem(found) is None


def test_a_report_is_read_again_only_where_it_has_changed(tmp_path, monkeypatch):
    path, calls = tmp_path / "report.json", []
    monkeypatch.setattr(study_records, "rounded", lambda value: calls.append(1) or value)
    path.write_text('{"format": 2}')
    first, second = _of_member(tmp_path), _of_member(tmp_path)
    assert first == second and first["report"] is not second["report"] and len(calls) == 1
    path.write_text('{"format": 3}')
    os.utime(path, ns=(1, 1))
    assert _of_member(tmp_path)["report"] == {"format": 3} and len(calls) == 2


def test_a_file_of_a_result_does_not_make_way_for_none(tmp_path):
    write_records([_record()], tmp_path)
    for worse in (_record(report=None), _record(status="cancelled", report=None, job_id="job_2"), _record(status="failed", job_id="job_2")):
        assert write_records([worse], tmp_path) == []
    assert read_records(tmp_path) == [_record()]


def test_a_record_of_a_run_without_a_result_makes_way(tmp_path):
    write_records([_record(status="failed", report=None)], tmp_path)
    write_records([_record(job_id="job_2")], tmp_path)
    assert [record["status"] for record in read_records(tmp_path)] == ["succeeded"]
    assert not (tmp_path / "a" / "replaced").exists()


def test_a_record_of_a_method_that_failed_is_not_lost_to_a_run_without_a_result(tmp_path):
    failed = _record(status="failed", reason="non_finite_loss", report=None)
    write_records([failed], tmp_path)
    assert write_records([_record(status="failed", reason="cluster_lost", report=None, job_id="job_2")], tmp_path) == []
    assert read_records(tmp_path) == [failed]


def test_a_record_keeps_its_report_when_the_runs_folder_is_gone(tmp_path):
    failed = _record(status="failed", reason="non_finite_loss", report={"format": 2})
    write_records([failed], tmp_path)
    assert write_records([{**failed, "report": None}], tmp_path) == []
    assert read_records(tmp_path) == [failed]


@pytest.mark.parametrize("changes", [{"digest": "e" * 64}, {"model_sha256": "m2", "status": "failed"}, {"inputs": {"/x": "2"}, "status": "failed"}, {}])
def test_a_file_of_another_run_is_moved_aside(tmp_path, changes):
    old, new, told = _record(model_sha256="m1", inputs={"/x": "1"}), _record(job_id="job_2", model_sha256="m1") | changes, []
    write_records([old], tmp_path)
    assert write_records([new], tmp_path, tell=told.append) == [tmp_path / "a" / "o-1.json"]
    assert read_records(tmp_path) == [new]
    assert len(told) == 1 and told[0].parent == tmp_path / "a" / "replaced" and json.loads(told[0].read_text()) == old


@pytest.mark.parametrize(
    "changes",
    [{"digest": ["x"]}, {"status": ["succeeded"]}, {"seed": "1"}, {"seed": True}, {"seconds": "5"}, {"message": {}}, {"inputs": {"/x": 1}}, {"software": []}, {"format": 2}],
)
def test_a_record_with_a_value_of_another_type_is_none(changes):
    assert record_problem(_record()) is None
    assert next(iter(changes)) in record_problem(_record(**changes))


def test_a_record_holds_nothing_that_means_something_on_one_machine_alone(tmp_path):
    stage = {"name": "sort", "model": "/home/me/runs/0-sort/policy", "mlflow": "http://127.0.0.1:8701/#/x", "gain": 0.5}
    report = {"format": 2, "stages": [stage], "models": {"sort": "/home/me/runs"}, "mlflow": {"job": "http://127.0.0.1:8701"}, "comparisons": {}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert _of_member(tmp_path)["report"] == {"format": 2, "stages": [{"name": "sort", "gain": 0.5}]}


def test_a_record_keeps_the_drift_over_all_tensors_and_four_digits(tmp_path):
    point = {"stage": "sort", "step": 5, "base": {"relative_l2": 0.0123456, "mlp/relative_l2": 0.5}, "start": None}
    report = {"format": 2, "drift": {"parameters": [point], "responses": [{"base": {"cosines": [0.99996, 0.123456]}}], "domain_distances": None}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = _of_member(tmp_path)["report"]["drift"]
    assert found["parameters"] == [{"stage": "sort", "step": 5, "base": {"relative_l2": 0.01235}, "start": None}]
    assert found["responses"] == [{"base": {"cosines": [1.0, 0.1235]}}]
