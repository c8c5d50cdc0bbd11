"""Reports on disk: links that came later, and the name that points at the newest job."""

from __future__ import annotations

import json

from services.evaluation.report import render_text
from services.scheduler.reporting import add_links, link_by_name, read_responses, write_report
from services.tracking.log import RunLog


def test_links_that_mlflow_gave_after_the_report_are_added(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"mlflow": {"job": None, "stages": {}}, "stages": [{"name": "a", "mlflow": None}], "steps": 3}))
    (tmp_path / "mlflow.json").write_text(json.dumps({"experiment": "1", "parent": "p", "stages": {"a": "r"}}))
    add_links(tmp_path, "http://127.0.0.1:1")
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["mlflow"] == {"job": "http://127.0.0.1:1/#/experiments/1/runs/p", "stages": {"a": "http://127.0.0.1:1/#/experiments/1/runs/r"}}
    assert report["stages"][0]["mlflow"].endswith("/runs/r") and report["steps"] == 3


def test_the_name_points_at_the_newest_job_and_a_real_folder_is_left_alone(tmp_path):
    for job in ("job_1", "job_2"):
        (tmp_path / job).mkdir()
        link_by_name(tmp_path / job, tmp_path / "demo")
    assert (tmp_path / "demo").resolve() == (tmp_path / "job_2").resolve()
    (tmp_path / "kept").mkdir()
    link_by_name(tmp_path / "job_1", tmp_path / "kept")
    assert not (tmp_path / "kept").is_symlink()


def test_entries_are_read_stage_by_stage_and_a_damaged_file_costs_its_own(tmp_path, caplog):
    for index, name in ((10, "k"), (2, "c"), (3, "d")):
        (tmp_path / "stages" / f"{index}-{name}").mkdir(parents=True)
        (tmp_path / "stages" / f"{index}-{name}" / "responses.json").write_text(json.dumps({"format": 1, "entries": [{"stage_index": index}]}))
    (tmp_path / "stages" / "3-d" / "responses.json").write_text('{"format": 1, "entr')
    assert read_responses(tmp_path) == [{"stage_index": 2}, {"stage_index": 10}]
    assert "3-d" in caplog.text
    assert read_responses(tmp_path / "nothing") == []


def test_a_jobs_folder_becomes_its_report(tmp_path):
    """Metrics of the log without what a rewind voided, the files of the stages, the events that the store gave."""
    run_dir = tmp_path / "job_1"
    log = RunLog(run_dir)
    for step, value in ((1, 0.5), (2, 0.6)):
        log.metrics(stage="add", stage_index=0, step=step, global_step=step, values={"drift/base/relative_l2": value})
    log.rewind(1)
    log.metrics(stage="add", stage_index=0, step=2, global_step=2, values={"drift/base/relative_l2": 0.7, "drift/stage/relative_l2": 0.7})
    log.close()
    (run_dir / "stages" / "0-add").mkdir(parents=True)
    entry = {"stage": "add", "stage_index": 0, "step": 2, "global_step": 2, "at": "stage_end", "domain": "add", "role": "own", "base": None}
    (run_dir / "stages" / "0-add" / "responses.json").write_text(json.dumps({"format": 1, "entries": [entry]}))
    (run_dir / "domain_distances.json").write_text(json.dumps({"format": 1, "bandwidth": 0.5, "mmd_squared": {"add": {"x": 0.25}}, "num_prompts": 9}))
    warning = {"code": "length_tail", "raised": True, "step": 2, "stage": "add", "severity": "warning", "message": "m", "evidence": {}}
    spec = {"name": "demo", "model": {"path": "m"}, "stages": [{"name": "add", "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}, "steps": 2}]}
    source = {"job": {"id": "job_1", "name": "demo", "spec": spec}, "evaluations": [], "checkpoints": [], "events": [{"kind": "collapse.warning", "data": warning}]}
    write_report(source, run_dir, tmp_path, mlflow_url="http://127.0.0.1:1")
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert [(item["step"], item["base"], item["start"]) for item in report["drift"]["parameters"]] == [
        (1, {"relative_l2": 0.5}, {}),
        (2, {"relative_l2": 0.7}, {"relative_l2": 0.7}),
    ]
    assert report["drift"]["responses"] == [entry] and report["collapse"]["warnings"] == [warning]
    assert report["drift"]["domain_distances"] == {"bandwidth": 0.5, "mmd_squared": {"add": {"x": 0.25}}, "notes": []}
    render_text(report)
