"""A study through the real service: cancelled half-way, resumed, its base scored once, its records taken to another submission."""

from __future__ import annotations

import time

import pytest
from e2e_service import Service, job_file

from services.jobs.study_records import read_records, write_records

pytestmark = [pytest.mark.timeout(1500), pytest.mark.slow]
ENDED = frozenset({"succeeded", "failed", "cancelled"})


def _study() -> dict:
    base = job_file("base", defaults={"steps": 2, "problems_per_step": 4}, evaluation={"problems": 32})
    return {
        "name": "two-arms",
        "base": base,
        "arms": [{"name": "plain"}, {"name": "fast", "set": {"defaults.optimizer.lr": 1e-4}}],
        "orders": [{"name": "ab", "stages": ["arithmetic", "strings"], "seeds": [1, 2]}],
        "hypotheses": [{"name": "faster", "claim": "a larger rate learns more", "figure": "gain", "arm": "fast", "against": "plain", "expect": "higher"}],
    }


def _events(client, job_id: str, kind: str) -> list[dict]:
    return [event for event in client.events(job_id, limit=100)["data"] if event["type"] == kind]


@pytest.fixture(scope="module")
def finished(service: Service) -> dict:
    """Cancelled while the second member runs, then resumed and run to its end; the members before the resume beside it."""
    with service.client() as client:
        study = client.submit_study(_study())
        deadline = time.monotonic() + 600
        while (now := client.study(study["id"]))["members"][1]["status"] != "running":
            assert time.monotonic() < deadline, now
            time.sleep(0.2)
        client.cancel_study(study["id"])
        stopped = client.wait_study(study["id"], timeout_s=120)
        client.resume_study(study["id"])
        done = client.wait_study(study["id"], timeout_s=900)
        return {"stopped": stopped, "done": done}


def test_a_cancelled_study_is_resumed_where_it_was_left(finished: dict):
    stopped, done = finished["stopped"]["members"], finished["done"]["members"]
    assert [member["status"] for member in stopped] == ["succeeded", "cancelled", "cancelled", "cancelled"]
    assert finished["done"]["counts"] == {"succeeded": 4}
    assert done[0]["job_id"] == stopped[0]["job_id"]
    assert {member["job_id"] for member in done[1:]}.isdisjoint(member["job_id"] for member in stopped)
    ended = [member["finished_at"] for member in done]
    assert ended == sorted(ended), "members run in the study's order"


def test_the_base_is_scored_once(service: Service, finished: dict):
    members = finished["done"]["members"]
    with service.client() as client:
        for member in members:
            measured = [event["data"]["domain"] for event in _events(client, member["job_id"], "evaluation.completed") if event["data"]["row"] == 0]
            shared = {event["data"]["domain"]: event["data"]["job"] for event in _events(client, member["job_id"], "evaluation.shared")}
            if member["position"] == 0:
                assert sorted(measured) == ["arithmetic", "strings"] and shared == {}
            else:
                assert measured == [] and shared == {"arithmetic": members[0]["job_id"], "strings": members[0]["job_id"]}
        rows = [client.report(member["job_id"])["score_matrix"]["means"][0] for member in members]
    assert rows[0] == rows[1] == rows[2] == rows[3]


def test_records_stand_for_runs_in_another_submission(service: Service, finished: dict, tmp_path):
    with service.client() as client:
        records = client.study_records(finished["done"]["id"])
        assert [(record["arm"], record["seed"]) for record in records] == [("plain", 1), ("fast", 1), ("plain", 2), ("fast", 2)]
        assert all(record["report"]["score_matrix"]["rows"] == ["base", "arithmetic", "strings"] for record in records)
        write_records(records, tmp_path)
        report = client.study_report(finished["done"]["id"])
        assert report["progress"]["succeeded"] == 4 and len(report["hypotheses"]) == 1
        again = client.submit_study(_study(), records=read_records(tmp_path))
    assert again["status"] == "succeeded" and all(member["recorded"] for member in again["members"])


def test_mlflow_has_study_arms_and_members(service: Service, finished: dict):
    from mlflow import MlflowClient

    client = MlflowClient(f"http://127.0.0.1:{service.environment['HOLDFAST_MLFLOW_PORT']}")
    experiment = client.get_experiment_by_name("holdfast").experiment_id
    deadline = time.monotonic() + 120
    while True:
        runs = {run.data.tags["holdfast.arm"]: run for run in client.search_runs([experiment], f"tags.`holdfast.study_id` = '{finished['done']['id']}'")}
        if {run.info.status for run in runs.values()} == {"FINISHED"} or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert set(runs) == {"", "plain", "fast"} and runs[""].info.status == "FINISHED"
    assert runs["fast"].data.tags["mlflow.parentRunId"] == runs[""].info.run_id
    assert -1.0 <= runs["fast"].data.metrics["gain"] <= 1.0
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{runs['fast'].info.run_id}'")
    members = {member["job_id"] for member in finished["done"]["members"] if member["arm"] == "fast"}
    assert members <= {run.data.tags["holdfast.job_id"] for run in below}
    assert {"report.json", "report.html"} <= {item.path for item in client.list_artifacts(runs[""].info.run_id)}
