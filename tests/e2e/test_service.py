"""Real jobs through the real service: HTTP, Ray, vLLM, FSDP2, the EMA teacher, MLflow."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import psutil
import pytest
from e2e_service import Service, job_file

pytestmark = pytest.mark.timeout(900)


def _wait(service: Service, job_id: str) -> dict:
    with service.client() as client:
        job = client.wait(job_id, timeout_s=600)
        if job["status"] != "succeeded":
            events = client.events(job_id, limit=100)["data"]
            pytest.fail(f"job ended {job['status']}: {job['reason']} {job['message']}\n{json.dumps(events[-10:], indent=1)}\n{client.logs(job_id, tail=60)}")
        return job


def _metric(service: Service, job_id: str, key: str) -> list[dict]:
    with service.client() as client:
        return client.metrics(job_id, key=key)["data"]


def _steps(service: Service, job_id: str, stage: str) -> list[int]:
    """The steps that the log has, each once, whatever was done again."""
    return [point["step"] for point in _metric(service, job_id, "gradient/norm") if point["stage"] == stage]


def _events(service: Service, job_id: str) -> list[dict]:
    with service.client() as client:
        return client.events(job_id, limit=100)["data"]


@pytest.fixture(scope="session")
def finished(service: Service) -> dict:
    """The two-stage job with one learner and one rollout worker."""
    with service.client() as client:
        job = client.submit(job_file("two-stages"))
    return _wait(service, job["id"])


def test_two_stages_succeed_and_every_domain_is_scored_three_times(service: Service, finished: dict):
    assert [stage["status"] for stage in finished["stages"]] == ["succeeded", "succeeded"]
    report = json.loads((service.home / "runs" / "two-stages" / "report.json").read_text())
    matrix = report["score_matrix"]
    assert matrix["domains"] == ["arithmetic", "strings"]
    assert len(matrix["means"]) == 3 and all(len(row) == 2 for row in matrix["means"])
    assert all(0.0 <= cell <= 1.0 for row in matrix["means"] for cell in row)
    with service.client() as client:
        evaluations = client.evaluations(finished["id"])
    assert evaluations["score_matrix"] == matrix["means"]


def test_engines_and_learner_agreed_after_every_publication(service: Service, finished: dict):
    points = _metric(service, finished["id"], "parity/max_abs_nats")
    assert len(points) == 9
    assert max(point["value"] for point in points) < 1e-4


def test_what_the_job_costs_elsewhere_is_measured_without_being_asked(service: Service, finished: dict):
    """Drift from the base grows over the stages, drift within the second stage is less; every step was watched for collapse."""
    base = [point["value"] for point in _metric(service, finished["id"], "drift/base/relative_l2")]
    stage = [point["value"] for point in _metric(service, finished["id"], "drift/stage/relative_l2")]
    assert len(base) == len(stage) == 4 and base == sorted(base) and base[0] > 0.0
    assert stage[:2] == base[:2] and 0.0 < stage[3] < base[3]
    assert len(_metric(service, finished["id"], "collapse/active")) == 8


def test_the_policies_of_the_stages_load_and_differ(finished: dict, service: Service):
    import torch
    from transformers import AutoModelForCausalLM

    run = service.home / "runs" / "two-stages"
    policies = [AutoModelForCausalLM.from_pretrained(run / "stages" / name / "policy") for name in ("0-arithmetic", "1-strings")]
    base = AutoModelForCausalLM.from_pretrained(Path(job_file("x")["model"]["path"]))
    states = [model.state_dict() for model in (base, *policies)]
    key = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(states[0][key], states[1][key])
    assert not torch.equal(states[1][key], states[2][key])
    record = json.loads((run / "stages" / "1-strings" / "reproducibility.json").read_text())
    assert record["cursor"]["global_step"] == 8 and record["stage"]["composition"]["teacher"]["kind"] == "ema"


def test_mlflow_has_the_parent_run_and_a_child_run_per_stage(service: Service, finished: dict):
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{service.environment['HOLDFAST_MLFLOW_PORT']}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    deadline = time.monotonic() + 60
    while True:
        runs = client.search_runs(experiments, f"tags.`holdfast.job_id` = '{finished['id']}'")
        finished_runs = [run for run in runs if run.info.status == "FINISHED"]
        if len(finished_runs) == 3 or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert len(finished_runs) == 3
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == 2
    for child in children:
        history = client.get_metric_history(child.info.run_id, "gradient/norm")
        assert len(history) == 4


@pytest.mark.slow
def test_two_learners_and_two_workers_take_the_same_first_step(service: Service, finished: dict):
    """FSDP with one rank proves nothing: the first gradient of 2 x 2 equals that of 1 x 1."""
    with service.client() as client:
        job = client.submit(
            job_file("two-by-two", defaults={"steps": 1}, compute={"device": "cpu", "learners": 2, "rollout_workers": 2})
        )
    job = _wait(service, job["id"])
    for stage in ("arithmetic",):
        for key in ("gradient/norm", "loss/total"):
            one = next(p for p in _metric(service, finished["id"], key) if p["stage"] == stage and p["step"] == 1)
            two = next(p for p in _metric(service, job["id"], key) if p["stage"] == stage and p["step"] == 1)
            assert one["value"] != 0
            assert math.isclose(one["value"], two["value"], rel_tol=1e-5, abs_tol=1e-7)


def _until(service: Service, job_id: str, stage: int, step: int) -> None:
    with service.client() as client:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            job = client.get(job_id)
            entry = job["stages"][stage]
            if (entry["step"] or 0) >= step:
                return
            assert job["status"] not in ("failed", "cancelled"), job
            time.sleep(0.1)
    pytest.fail(f"{job_id} never reached step {step} of stage {stage}")


def _learner_pid(service: Service, job_id: str) -> int:
    started = [event for event in _events(service, job_id) if event["type"] == "learner.started"]
    return started[-1]["data"]["pid"]


def test_a_killed_learner_continues_from_the_last_checkpoint(service: Service):
    with service.client() as client:
        job = client.submit(job_file("killed-learner", defaults={"steps": 12}, checkpoint={"every_steps": 3}))
    _until(service, job["id"], 1, 4)
    psutil.Process(_learner_pid(service, job["id"])).kill()
    job = _wait(service, job["id"])
    starts = [event for event in _events(service, job["id"]) if event["type"] == "learner.started"]
    assert len(starts) == 2
    resumed = [event for event in _events(service, job["id"]) if event["type"] == "stage.status" and "continues at step" in event["message"]]
    assert resumed and resumed[0]["data"]["step"] % 3 == 0 and resumed[0]["data"]["step"] >= 3
    assert _steps(service, job["id"], "strings") == list(range(1, 13))


@pytest.mark.slow
def test_a_job_survives_stop_and_start_of_the_whole_service(service: Service):
    spec = job_file("service-restart", defaults={"steps": 40}, checkpoint={"every_steps": 10}, evaluation={"problems": 32})
    spec["stages"] = spec["stages"][:1]
    with service.client() as client:
        job = client.submit(spec)
    _until(service, job["id"], 0, 12)
    service.down()
    service.up()
    job = _wait(service, job["id"])
    events = _events(service, job["id"])
    assert [event["data"].get("reason") for event in events if event["type"] == "attempt.ended"] == ["cluster_lost"]
    resumed = [event["data"]["step"] for event in events if "continues at step" in event["message"]]
    assert len(resumed) == 1 and resumed[0] >= 10 and resumed[0] % 10 == 0
    assert _steps(service, job["id"], "arithmetic") == list(range(1, 41))


def test_pause_resume_and_cancel_at_a_step_boundary(service: Service):
    with service.client() as client:
        job = client.submit(job_file("pausing", defaults={"steps": 40}))
        _until(service, job["id"], 0, 2)
        client.pause(job["id"])
        paused = client.wait(job["id"], timeout_s=120, until=frozenset({"paused", "failed"}))
        assert paused["status"] == "paused"
        step = paused["stages"][0]["step"]
        assert client.checkpoints(job["id"])["data"][-1]["step"] == step
        client.resume(job["id"])
        _until(service, job["id"], 0, step + 1)
        client.cancel(job["id"])
        cancelled = client.wait(job["id"], timeout_s=120)
        assert cancelled["status"] == "cancelled"
