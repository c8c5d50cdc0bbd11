"""Every recipe through the real service, as stages of one job, so that the engine starts once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from e2e_service import ROOT, Service

from api.commands.job_file import load
from cluster.spec.job import JobSpec
from cluster.spec.recipes import RECIPES

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
JOB_FILE = ROOT / "deploy" / "jobs" / "all-recipes.yaml"


@pytest.fixture(scope="module")
def finished(service: Service) -> dict:
    with service.client() as client:
        job = client.submit(load(JOB_FILE))
        job = client.wait(job["id"], timeout_s=840)
        if job["status"] != "succeeded":
            events = client.events(job["id"], limit=100)["data"]
            pytest.fail(f"job ended {job['status']}: {job['reason']} {job['message']}\n{json.dumps(events[-6:], indent=1)}\n{client.logs(job['id'], tail=60)}")
    return job


def test_the_job_names_every_recipe_and_every_stage_succeeds(finished: dict):
    spec = JobSpec.model_validate(load(JOB_FILE))
    assert {stage.method.recipe for stage in spec.stages} == set(RECIPES)
    assert [stage["status"] for stage in finished["stages"]] == ["succeeded"] * len(spec.stages)


def test_every_term_of_every_stage_has_its_own_finite_loss_and_the_policy_moved(service: Service, finished: dict):
    spec = JobSpec.model_validate(load(JOB_FILE))
    with service.client() as client:
        norms = client.metrics(finished["id"], key="gradient/norm")["data"]
        parity = client.metrics(finished["id"], key="parity/max_abs_nats")["data"]
    assert max(point["value"] for point in parity) < 1e-4
    for stage in spec.resolved_stages():
        assert len([point for point in norms if point["stage"] == stage.name]) == stage.steps, stage.name
        assert max(point["value"] for point in norms if point["stage"] == stage.name) > 0.0, stage.name
        for term in stage.composition.terms:
            with service.client() as client:
                points = client.metrics(finished["id"], key=f"loss/{term.name}", stage=stage.name)["data"]
            assert len(points) == stage.steps, f"{stage.name}: loss/{term.name} is missing"


def test_distilling_stages_say_how_teacher_and_policy_differ(service: Service, finished: dict):
    spec = JobSpec.model_validate(load(JOB_FILE))
    for stage in spec.resolved_stages():
        if stage.composition.teacher is None:
            continue
        with service.client() as client:
            for key in ("teacher/positive_share", "teacher/sampled_kl_nats", "teacher/gap_nats/at_0", "batch/target_share"):
                points = client.metrics(finished["id"], key=key, stage=stage.name)["data"]
                assert points, f"{stage.name}: {key} is missing"
            if stage.composition.top_k is not None:
                for key in ("policy/support_mass", "teacher/support_mass"):
                    values = [point["value"] for point in client.metrics(finished["id"], key=key, stage=stage.name)["data"]]
                    assert values and all(0.0 < value <= 1.0 + 1e-6 for value in values), f"{stage.name}: {key}"


def test_mlflow_has_a_run_for_every_recipe_with_its_own_metrics(service: Service, finished: dict):
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{service.environment['HOLDFAST_MLFLOW_PORT']}")
    spec = JobSpec.model_validate(load(JOB_FILE))
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    deadline = time.monotonic() + 90
    while True:
        runs = client.search_runs(experiments, f"tags.`holdfast.job_id` = '{finished['id']}'")
        if len([run for run in runs if run.info.status == "FINISHED"]) == len(spec.stages) + 1 or time.monotonic() > deadline:
            break
        time.sleep(1)
    by_name = {run.info.run_name: run for run in runs}
    for stage in spec.resolved_stages():
        run = by_name[stage.name]
        assert run.data.params["recipe"] == stage.recipe
        for term in stage.composition.terms:
            assert f"loss/{term.name}" in run.data.metrics


def test_the_recorded_rollouts_were_replayed_token_for_token(service: Service, finished: dict):
    """A replayed stage trains on what an earlier stage sampled: its mean length and score are those of the record."""
    spec = JobSpec.model_validate(load(JOB_FILE))
    replayed = [stage for stage in spec.resolved_stages() if stage.composition.experience.kind == "replayed"]
    assert replayed, "the file should replay a recorded stage"
    for stage in replayed:
        with service.client() as client:
            for key in ("rollout/score_mean", "rollout/length_mean"):
                ours = [point["value"] for point in client.metrics(finished["id"], key=key, stage=stage.name)["data"]]
                theirs = [
                    point["value"] for point in client.metrics(finished["id"], key=key, stage=stage.composition.experience.stage)["data"]
                ]
                assert ours and ours == theirs[: len(ours)]
    assert Path(service.home / "runs" / finished["name"] / "report.json").exists()
