"""A study in a real MLflow: its run, its arms, the members' runs below them, the report of what has ended."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from services.evaluation.studies import build_study_report
from services.jobs.connection import StoreUnavailableError
from services.jobs.records import StudyPlace, StudyRecord
from services.tracking import study_feed
from services.tracking.links import study_link
from services.tracking.log import RunLog
from services.tracking.mlflow_calls import MlflowCalls
from services.tracking.sender import Sender

JOB = {"name": "m", "model": {"path": "/m"}, "seed": 7, "stages": [{"name": "sums", "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}, "steps": 2}]}
SPEC = {"name": "ablation", "base": JOB, "arms": [{"name": "a"}, {"name": "b", "set": {"defaults.steps": 3}}], "orders": [{"name": "o", "stages": ["sums"], "seeds": [1]}]}
CREATED = "2026-11-21T10:00:00.000Z"


@pytest.fixture
def study() -> StudyRecord:
    return StudyRecord(
        id=f"study_{time.time_ns()}", name="ablation", spec=SPEC, spec_hash="s", labels={}, created_at=CREATED, counts={"queued": 2}, started_at=None, finished_at="2026-11-21T11:00:00.000Z"
    )


def _runs(url: str, study: StudyRecord) -> dict[str, object]:
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name("holdfast")
    found = client.search_runs([experiment.experiment_id], f"tags.`holdfast.study_id` = '{study.id}'")
    assert len({run.data.tags["holdfast.arm"] for run in found}) == len(found), "each run is made once"
    return {run.data.tags["holdfast.arm"]: run for run in found}


def test_members_lie_below_arms_and_arms_below_the_study(mlflow_server, study, tmp_path):
    run_dir = tmp_path / "runs" / study.id
    run_dir.mkdir(parents=True)
    RunLog(run_dir).metrics(stage="sums", stage_index=0, step=1, global_step=1, values={"loss/total": 1.0})
    place = StudyPlace(study_id=study.id, study=study.name, arm="b", order="o", seed=1, created_at=CREATED)
    sender = Sender(mlflow_server.url, tmp_path / "runs")
    sender.watch(f"job_{study.id}", run_dir, "ablation-b-o-1", JOB, "succeeded", place=place)
    sender.watch_study(study, "running", 0, tmp_path / "studies" / study.id, list)
    sender.send_all()
    sender.send_all()
    runs = _runs(mlflow_server.url, study)
    assert set(runs) == {"", "a", "b"}
    assert {runs[arm].data.tags["mlflow.parentRunId"] for arm in "ab"} == {runs[""].info.run_id}
    assert runs["b"].data.params == {"defaults.steps": "3"}
    client = MlflowClient(mlflow_server.url)
    jobs = client.search_runs([runs["b"].info.experiment_id], f"tags.`holdfast.job_id` = 'job_{study.id}'")
    parents = {run.data.tags["holdfast.stage"]: run.data.tags["mlflow.parentRunId"] for run in jobs}
    assert parents[""] == runs["b"].info.run_id and parents["sums"] in {run.info.run_id for run in jobs}
    assert study_link(tmp_path, study.id, mlflow_server.url).endswith(runs[""].info.run_id)


def test_the_runs_end_with_the_study_and_go_on_with_a_resume(mlflow_server, study, tmp_path):
    folder = tmp_path / "studies" / study.id
    sender = Sender(mlflow_server.url, tmp_path)
    for status, expected in (("running", "RUNNING"), ("failed", "FAILED"), ("running", "RUNNING"), ("cancelled", "KILLED")):
        sender.watch_study(study, status, 0, folder, list)
        sender.send_all()
        assert {run.info.status for run in _runs(mlflow_server.url, study).values()} == {expected}
    assert _runs(mlflow_server.url, study)[""].info.end_time == 1795258800000
    # another process, and a lost cursor: the same runs are found
    for path in folder.glob("*.json"):
        path.unlink()
    again = Sender(mlflow_server.url, tmp_path)
    again.watch_study(study, "cancelled", 0, folder, list)
    again.send_all()
    assert len(_runs(mlflow_server.url, study)) == 3


def test_the_report_is_sent_when_members_have_ended_and_not_too_often(mlflow_server, study, tmp_path, monkeypatch):
    folder, asked = tmp_path / "studies" / study.id, []

    def records():
        asked.append(1)
        return []

    now = [0.0]
    sender = Sender(mlflow_server.url, tmp_path)
    feed = study_feed.StudyFeed(study, folder, records, clock=lambda: now[0])
    sender._studies[study.id] = feed
    for ended, seconds, expected in ((1, 0, 0), (2, 0, 1), (3, 10, 1), (3, 700, 2), (3, 5000, 2)):
        now[0] = seconds
        sender.watch_study(study, "running", ended, folder, records)
        sender.send_all()
        assert len(asked) == expected, (ended, seconds)
    sender.watch_study(study, "succeeded", 4, folder, records)
    sender.send_all()
    assert len(asked) == 3 and feed.is_done
    client = MlflowClient(mlflow_server.url)
    run = _runs(mlflow_server.url, study)[""]
    assert {"report.json", "report.html", "study.json"} <= {item.path for item in client.list_artifacts(run.info.run_id)}
    assert run.data.metrics["members_ended"] == 4.0


def test_a_report_that_takes_long_is_made_less_often(mlflow_server, study, tmp_path, monkeypatch):
    now, made = [0.0], []

    def build(spec, records):
        made.append(now[0])
        now[0] += 30.0
        return build_study_report(spec, records)

    def artifact(*arguments):
        now[0] += 5.0  # of two files

    monkeypatch.setattr("services.evaluation.studies.build_study_report", build)
    feed, calls = _feed(study, tmp_path / study.id, list, clock=lambda: now[0]), MlflowCalls(mlflow_server.url, "holdfast")
    monkeypatch.setattr(calls, "artifact", artifact)
    for ended, seconds in ((2, 0.0), (3, 1999.0), (3, 2000.0), (4, 3999.0), (4, 4000.0)):
        now[0] = seconds
        _tell(feed, "running", ended, None)
        feed.advance(calls)
    assert made == [0.0, 2000.0, 4000.0], "2 % of the time"
    _tell(feed, "succeeded", 4, "2026-11-21T12:00:00.000Z")
    feed.advance(calls)
    assert len(made) == 4, "the last one does not wait"


def _feed(study, folder, records, clock=lambda: 0.0):
    return study_feed.StudyFeed(study, folder, records, clock=clock)


def _tell(feed, status, num_ended, finished_at):
    feed.study = replace(feed.study, finished_at=finished_at)
    feed.status, feed.num_ended = status, num_ended


RESUMED = {"seen": ["running"], "unseen": [], "unseen after a restart": ["restart"]}


@pytest.mark.parametrize("between", RESUMED.values(), ids=RESUMED)
def test_a_study_that_was_resumed_gets_its_last_report_again(mlflow_server, study, tmp_path, between):
    """One of ten failed and is run again: as many have ended as before. MLflow may have been away while it ran."""
    made, calls = [], MlflowCalls(mlflow_server.url, "holdfast")

    def records():
        made.append(1)
        return []

    feed = _feed(study, tmp_path / study.id, records)
    _tell(feed, "failed", 10, "2026-11-21T11:00:00.000Z")
    feed.advance(calls)
    feed.advance(calls)
    assert len(made) == 1 and feed.is_done
    for step in between:
        if step == "restart":
            feed = _feed(study, tmp_path / study.id, records)
        else:
            _tell(feed, step, 9, None)
            feed.advance(calls)
    _tell(feed, "succeeded", 10, "2026-11-21T12:00:00.000Z")
    assert not feed.is_done
    feed.advance(calls)
    assert len(made) == 2 and feed.is_done


def test_records_that_could_not_be_read_are_asked_for_again_and_keep_nothing_back(mlflow_server, study, tmp_path):
    """The store or Ray is away for a while; not ten minutes, and not for ever."""
    now, away, calls = [0.0], [True], MlflowCalls(mlflow_server.url, "holdfast")

    def records():
        if away[0]:
            raise StoreUnavailableError("gone")
        return []

    feed = _feed(study, tmp_path / study.id, records, clock=lambda: now[0])
    _tell(feed, "failed", 2, study.finished_at)
    feed.advance(calls)
    assert _runs(mlflow_server.url, study)[""].info.status == "FAILED" and not feed.is_done
    away[0] = False
    feed.advance(calls)
    assert not feed.is_done, "it is not asked every second"
    now[0] = study_feed.AGAIN_AFTER_S
    feed.advance(calls)
    assert feed.is_done
    assert _runs(mlflow_server.url, study)[""].data.metrics["members_ended"] == 2.0


def test_a_report_that_mlflow_did_not_take_is_not_made_again(mlflow_server, study, tmp_path):
    made, now = [], [0.0]
    calls, away = MlflowCalls(mlflow_server.url, "holdfast"), MlflowCalls("http://127.0.0.1:9", "holdfast")

    def records():
        made.append(1)
        return []

    feed = _feed(study, tmp_path / study.id, records, clock=lambda: now[0])
    feed.advance(calls)
    _tell(feed, "running", 2, None)
    for _ in range(3):
        with pytest.raises(MlflowException):
            feed.advance(away)
    assert len(made) == 1
    now[0] = 1.0  # and it does not wait for the next one
    feed.advance(calls)
    assert len(made) == 1 and _runs(mlflow_server.url, study)[""].data.metrics["members_ended"] == 2.0


def test_a_report_that_cannot_be_made_keeps_nothing_back(mlflow_server, study, tmp_path):
    sender = Sender(mlflow_server.url, tmp_path)
    sender.watch_study(study, "failed", 2, tmp_path / "studies" / study.id, lambda: [{"format": "broken"}])
    sender.send_all()
    assert _runs(mlflow_server.url, study)[""].info.status == "FAILED"
    assert sender._studies[study.id].is_done, "the same report would fail again"


def test_a_study_waits_while_mlflow_is_away(study, tmp_path: Path):
    sender = Sender("http://127.0.0.1:9", tmp_path)
    sender.watch_study(study, "running", 0, tmp_path / "studies" / study.id, list)
    with pytest.raises(MlflowException):
        sender.send_all()


def test_the_means_of_an_arm():
    rows = [{"arm": "a", "order": "x", "mean": 0.25}, {"arm": "a", "order": "y", "mean": None}, {"arm": "b", "order": "x", "mean": 1.0}, {"arm": "a", "order": None, "mean": 0.5}]
    report = {"figures": [{"figure": "gain", "rows": rows}]}
    assert study_feed.arm_means(report, "a") == {"gain/x": 0.25, "gain": 0.5}
    assert study_feed.arm_means(report, "b") == {"gain": 1.0}
