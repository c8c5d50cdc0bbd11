"""From the log to a real MLflow: every final point once, whatever is repeated, rewound, or away for a while."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from services.tracking.links import CURSOR, run_links
from services.tracking.log import RunLog
from services.tracking.sender import Sender
from tests.tracking.conftest import MlflowServer

SPEC = {
    "name": "demo",
    "model": {"path": "/m"},
    "seed": 7,
    "stages": [
        {"name": "sums", "domain": {"kind": "arithmetic", "digits": 2}, "method": {"recipe": "sdpo"}, "steps": 10},
        {"name": "words", "domain": {"kind": "strings"}, "method": {"recipe": "grpo"}, "steps": 10},
    ],
}


@pytest.fixture
def job(tmp_path, request) -> tuple[str, Path]:
    return f"job_{request.node.name[-20:].strip('[]')}_{time.time_ns()}", tmp_path


def steps(log: RunLog, numbers, *, stage="sums", index=0, offset=0) -> None:
    for step in numbers:
        values = {"loss/total": 1.0 / step, "reward/mean": float(step)}
        log.metrics(stage=stage, stage_index=index, step=step, global_step=offset + step, values=values)


def evaluation(log: RunLog, *, stage, index, step, global_step, score) -> None:
    values = {"eval/sums/score": score, "eval/words/score": score / 2}
    log.metrics(stage=stage, stage_index=index, step=step, global_step=global_step, values=values)


def send(url: str, job, status: str = "running", rounds: int = 1) -> Sender:
    sender = Sender(url, job[1].parent)
    sender.watch(job[0], job[1], "demo", SPEC, status)
    for _ in range(rounds):
        sender.send_all()
    return sender


def runs_of(url: str, job) -> dict[str, str]:
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name("holdfast")
    found = client.search_runs([experiment.experiment_id], f"tags.`holdfast.job_id` = '{job[0]}'")
    return {run.data.tags["holdfast.stage"]: run.info.run_id for run in found}


def history(url: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((metric.step, metric.value) for metric in MlflowClient(url).get_metric_history(run_id, key))


def test_only_what_is_final_is_sent_and_the_rest_when_the_job_has_ended(mlflow_server, job):
    log = RunLog(job[1])
    log.stage_start("sums", 0, 0)
    steps(log, range(1, 4))
    sender = send(mlflow_server.url, job)
    assert not (job[1] / CURSOR).exists() and sender.outbox_bytes > 0
    log.commit(3)
    steps(log, range(4, 6))
    send(mlflow_server.url, job)
    runs = runs_of(mlflow_server.url, job)
    assert history(mlflow_server.url, runs["sums"], "reward/mean") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    sender = send(mlflow_server.url, job, "cancelled")
    assert history(mlflow_server.url, runs["sums"], "reward/mean") == [(step, float(step)) for step in range(1, 6)]
    assert sender.is_done(job[1]) and sender.outbox_bytes == 0
    client = MlflowClient(mlflow_server.url)
    assert {client.get_run(run_id).info.status for run_id in runs.values()} == {"KILLED"}


def test_a_replay_adds_nothing_anywhere(mlflow_server, job):
    """The cursor is thrown away and everything sent again, twice: same runs, same points, same tables, same models."""
    log = RunLog(job[1])
    evaluation(log, stage=None, index=None, step=0, global_step=0, score=0.2)
    log.stage_start("sums", 0, 0)
    steps(log, range(1, 11))
    log.table("samples", [{"prompt": "1+1", "score": 1.0}, {"prompt": "2+2", "score": 0.0}], stage="sums", global_step=10)
    log.dataset("extra", "abc123", "evaluation", stage="sums", global_step=10)
    log.params("sums", {"note": "x"}, global_step=10)
    log.checkpoint(name="demo-sums", uri="/runs/policy", stage="sums", global_step=10)
    evaluation(log, stage="sums", index=0, step=10, global_step=10, score=0.8)
    log.stage_end("sums", 0, 10)
    log.commit(10)
    log.close()
    for _ in range(3):
        send(mlflow_server.url, job)
        (job[1] / CURSOR).unlink()
    send(mlflow_server.url, job, "succeeded")
    runs = runs_of(mlflow_server.url, job)
    assert sorted(runs) == ["", "sums"]
    for key in ("loss/total", "reward/mean"):
        assert [step for step, _ in history(mlflow_server.url, runs["sums"], key)] == list(range(1, 11))
    assert history(mlflow_server.url, runs[""], "eval/words/score") == [(0, 0.1), (10, 0.4)]
    client = MlflowClient(mlflow_server.url)
    table = json.loads(Path(client.download_artifacts(runs["sums"], "samples/step_000010.json")).read_text())
    assert table == {"columns": ["prompt", "score"], "data": [["1+1", 1.0], ["2+2", 0.0]]}
    stage = client.get_run(runs["sums"])
    assert stage.data.tags["mlflow.parentRunId"] == runs[""] and stage.info.status == "FINISHED"
    assert stage.data.params["note"] == "x" and json.loads(stage.data.params["method"]) == {"recipe": "sdpo"}
    data = {(item.dataset.name, item.tags[0].value) for item in stage.inputs.dataset_inputs}
    assert data == {("extra", "evaluation")} and len(stage.inputs.dataset_inputs) == 1
    models = client.search_logged_models([stage.info.experiment_id], filter_string=f"source_run_id = '{runs['sums']}'")
    assert [(model.name, model.params["uri"], model.status.value) for model in models] == [("demo-sums", "/runs/policy", "READY")]
    assert [output.model_id for output in stage.outputs.model_outputs] == [models[0].model_id]


def test_after_a_rewind_each_step_is_there_once(mlflow_server, job):
    """Killed after step 8 with a checkpoint at 5, then again after 12 with one at 10, which turns out damaged: back to 5."""
    log = RunLog(job[1])
    log.stage_start("sums", 0, 0)
    steps(log, range(1, 6))
    log.commit(5)
    send(mlflow_server.url, job)
    steps(log, range(6, 9))
    log.close()
    log = RunLog(job[1])
    log.rewind(5)
    send(mlflow_server.url, job)
    steps(log, range(6, 11))
    log.commit(10)
    send(mlflow_server.url, job)
    steps(log, [11, 12])
    log.close()
    log = RunLog(job[1])
    log.rewind(5)
    log.stage_start("sums", 0, 5)
    time.sleep(0.005)
    steps(log, range(6, 14))
    log.commit(13)
    log.close()
    send(mlflow_server.url, job, "succeeded")
    runs = runs_of(mlflow_server.url, job)
    for key in ("loss/total", "reward/mean"):
        assert [step for step, _ in history(mlflow_server.url, runs["sums"], key)] == list(range(1, 14))


def test_what_was_logged_up_to_the_checkpoint_survives_a_lost_commit_line(mlflow_server, job):
    """The store had committed step 3 when the process died before it could say so in the log."""
    log = RunLog(job[1])
    log.stage_start("sums", 0, 0)
    steps(log, range(1, 5))
    log.close()
    log = RunLog(job[1])
    log.rewind(3)
    steps(log, [4])
    log.commit(4)
    log.close()
    send(mlflow_server.url, job)
    assert [step for step, _ in history(mlflow_server.url, runs_of(mlflow_server.url, job)["sums"], "reward/mean")] == [1, 2, 3, 4]


def test_the_report_becomes_a_figure_and_a_table(mlflow_server, job):
    log = RunLog(job[1])
    steps(log, [1])
    log.close()
    matrix = {"rows": ["base", "sums"], "domains": ["sums", "words"], "means": [[0.25, 0.5], [0.75, None]]}
    (job[1] / "report.json").write_text(json.dumps({"score_matrix": matrix}))
    send(mlflow_server.url, job, "failed")
    client, runs = MlflowClient(mlflow_server.url), runs_of(mlflow_server.url, job)
    assert {item.path for item in client.list_artifacts(runs[""])} >= {"report.json", "score_matrix.json", "score_matrix.png", "spec.json"}
    table = json.loads(Path(client.download_artifacts(runs[""], "score_matrix.json")).read_text())
    assert table == {"columns": ["after", "sums", "words"], "data": [["base", 0.25, 0.5], ["sums", 0.75, None]]}
    assert Path(client.download_artifacts(runs[""], "score_matrix.png")).read_bytes()[:4] == b"\x89PNG"
    assert {client.get_run(run_id).info.status for run_id in runs.values()} == {"FAILED"}


def test_drift_becomes_tables_and_a_figure_that_cannot_be_drawn_stops_nothing(mlflow_server, job, monkeypatch, caplog):
    from matplotlib.figure import Figure

    from services.evaluation import plots

    parameters = [{"stage": "sums", "stage_index": 0, "step": 10, "global_step": 10, "base": {"nss_median": 0.5, "mlp/nss_median": 0.4}, "start": {"nss_median": 0.25}}]
    base = {"kl_policy_base": 0.125, "similarity": {"median": 0.75}, "cosines": [0.7, 0.8]}
    responses = [{"stage": "sums", "step": 10, "at": "stage_end", "domain": "words", "role": "other", "base": base, "start": None}]
    (job[1] / "report.json").write_text(json.dumps({"format": 2, "drift": {"parameters": parameters, "responses": responses}}))
    log = RunLog(job[1])
    steps(log, [1])
    log.close()
    broken, drawn = Figure(), Figure()
    broken.text(0.5, 0.5, r"$\frac{$")
    drawn.add_subplot().plot([0, 1])
    monkeypatch.setattr(plots, "job_figures", lambda report: {"broken": broken, "drift_by_step": drawn})
    sender = send(mlflow_server.url, job, "succeeded")
    client, runs = MlflowClient(mlflow_server.url), runs_of(mlflow_server.url, job)
    assert [item.path for item in client.list_artifacts(runs[""], "figures")] == ["figures/drift_by_step.png"]
    assert Path(client.download_artifacts(runs[""], "figures/drift_by_step.png")).read_bytes()[:4] == b"\x89PNG"
    (table,) = [json.loads(Path(client.download_artifacts(runs[""], "drift_parameters.json")).read_text())]
    assert dict(zip(table["columns"], table["data"][0], strict=True)) == {
        "stage": "sums",
        "stage_index": 0,
        "step": 10,
        "global_step": 10,
        "base/nss_median": 0.5,
        "start/nss_median": 0.25,
    }
    table = json.loads(Path(client.download_artifacts(runs[""], "responses.json")).read_text())
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert (row["domain"], row["base/kl_policy_base"], row["base/similarity/median"]) == ("words", 0.125, 0.75)
    assert "base/cosines" not in row
    assert sender._feeds[job[0]].undrawn == 1 and "broken" in caplog.text and sender.is_done(job[1])


def test_links_are_there_as_soon_as_the_runs_are(mlflow_server, job):
    assert run_links(job[1], mlflow_server.url) == {}
    log = RunLog(job[1])
    steps(log, [1])
    log.commit(1)
    log.close()
    send(mlflow_server.url, job)
    runs = runs_of(mlflow_server.url, job)
    experiment = MlflowClient(mlflow_server.url).get_run(runs[""]).info.experiment_id
    assert run_links(job[1], mlflow_server.url + "/") == {
        None: f"{mlflow_server.url}/#/experiments/{experiment}/runs/{runs['']}",
        "sums": f"{mlflow_server.url}/#/experiments/{experiment}/runs/{runs['sums']}",
    }


def test_a_record_that_mlflow_refuses_does_not_keep_the_others_back(mlflow_server, job):
    log = RunLog(job[1])
    steps(log, [1])
    log.table("../escape", [{"a": 1}], stage="sums", global_step=1)
    steps(log, [2])
    log.commit(2)
    log.close()
    sender = send(mlflow_server.url, job, rounds=0)
    for _ in range(2):
        with pytest.raises(Exception, match="Invalid artifact path"):
            sender.send_all()
    sender.send_all()
    assert sender.outbox_bytes == 0
    assert [step for step, _ in history(mlflow_server.url, runs_of(mlflow_server.url, job)["sums"], "reward/mean")] == [1, 2]


def test_training_and_its_points_survive_a_server_that_goes_away_and_comes_back(tmp_path_factory, job):
    """A server of its own is killed during the job: logging goes on at full speed, and later every point is there once."""
    server = MlflowServer(tmp_path_factory.mktemp("own"))
    sender = Sender(server.url, job[1].parent, poll_s=0.1)
    try:
        server.start()
        sender.watch(job[0], job[1], "demo", SPEC)
        sender.start()
        log = RunLog(job[1])
        log.stage_start("sums", 0, 0)
        steps(log, range(1, 11))
        log.commit(10)
        _wait(lambda: sender.outbox_bytes == 0, 60)
        server.stop()
        slowest = 0.0
        for step in range(11, 41):
            started = time.perf_counter()
            steps(log, [step])
            slowest = max(slowest, time.perf_counter() - started)
            time.sleep(0.02)
        log.commit(40)
        _wait(lambda: sender.failures_in_a_row >= 2, 60)
        assert slowest < 0.5, "logging waited for a dead server"
        assert sender.outbox_bytes > 0
        log.stage_end("sums", 0, 40)
        log.close()
        server.start()
        sender.watch(job[0], job[1], "demo", SPEC, "succeeded")
        _wait(lambda: sender.is_done(job[1]), 90)
        runs = runs_of(server.url, job)
        assert [step for step, _ in history(server.url, runs["sums"], "reward/mean")] == list(range(1, 41))
        assert sender.failures_in_a_row == 0
    finally:
        sender.stop()
        server.stop()


def test_a_server_that_lost_everything_gets_everything_again(tmp_path_factory, job):
    server = MlflowServer(tmp_path_factory.mktemp("first"))
    other = MlflowServer(tmp_path_factory.mktemp("second"))
    log = RunLog(job[1])
    log.stage_start("sums", 0, 0)
    steps(log, range(1, 6))
    log.commit(5)
    try:
        server.start()
        send(server.url, job)
        server.stop()
        steps(log, range(6, 8))
        log.commit(7)
        other.start()
        with pytest.raises(Exception, match="not found"):
            send(other.url, job)
        send(other.url, job)
        runs = runs_of(other.url, job)
        assert [step for step, _ in history(other.url, runs["sums"], "reward/mean")] == list(range(1, 8))
    finally:
        log.close()
        server.stop()
        other.stop()


def test_a_round_against_nobody_ends_soon_and_keeps_everything(dead_url, job):
    log = RunLog(job[1])
    steps(log, range(1, 4))
    log.commit(3)
    log.close()
    sender = Sender(dead_url, job[1].parent)
    for number in range(5):
        sender.watch(f"{job[0]}_{number}", job[1], "demo", SPEC)
    started = time.perf_counter()
    with pytest.raises(Exception, match=r"refused|Max retries"):
        sender.send_all()
    assert time.perf_counter() - started < 30
    assert sender.outbox_bytes > 0


def _wait(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
