"""Reports on disk: links that came later, and the name that points at the newest job."""

from __future__ import annotations

import json

from services.scheduler.reporting import add_links, link_by_name


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
