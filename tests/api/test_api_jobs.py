"""Reading and steering jobs: pages, ETags, long polls, illegal transitions, parts of a job."""

from __future__ import annotations

import json
import shutil
import threading
import time

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from cluster.errors import HoldfastError
from cluster.settings import Settings
from services.jobs.store import JobStore
from services.tracking.log import RunLog


def _submit(http, spec, **changes) -> dict:
    answer = http.post("/v1/jobs", json={**spec, **changes})
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_job_is_found_by_id_and_by_name(http, spec):
    job = _submit(http, spec)
    assert http.get(f"/v1/jobs/{job['id']}").json() == http.get("/v1/jobs/demo").json() == job


@pytest.mark.parametrize("method, path", [("GET", ""), ("GET", "/events"), ("GET", "/events/stream"), ("GET", "/logs"), ("GET", "/evaluations"), ("POST", "/cancel")])
def test_an_unknown_job_is_404(http, method, path):
    answer = http.request(method, f"/v1/jobs/job_unknown{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/v1/jobs/..%2f..%2fetc%2fpasswd", "/v1/jobs/%00", "/v1/jobs/a%0d%0ab", "/v1/jobs/" + "a" * 300, "/v1/jobs/%f0%9f%92%a3"])
def test_a_hostile_id_is_refused(http, path):
    assert http.get(path).status_code in (404, 422)


def test_pages_cover_all_jobs_once(http, spec):
    ids = [_submit(http, spec, name=f"job-{number}")["id"] for number in range(5)]
    seen, after = [], None
    while True:
        page = http.get("/v1/jobs", params={"limit": 2, **({"after": after} if after else {})}).json()
        seen += [job["id"] for job in page["data"]]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == ids[::-1]
    assert [job["id"] for job in http.get("/v1/jobs", params={"order": "asc"}).json()["data"]] == ids


def test_jobs_are_filtered(http, spec):
    a = _submit(http, spec, name="a", labels={"team": "x", "tier": "1"})
    b = _submit(http, spec, name="b", labels={"team": "x", "tier": "2"})
    http.post(f"/v1/jobs/{b['id']}/cancel")

    def ids(query: str) -> set[str]:
        return {job["id"] for job in http.get("/v1/jobs?" + query).json()["data"]}

    assert ids("name=a") == {a["id"]}
    assert ids("label=team=x") == {a["id"], b["id"]}
    assert ids("label=team=x&label=tier=2") == {b["id"]}
    assert ids("label=team=y") == set()
    assert ids("status=queued") == {a["id"]}


@pytest.mark.parametrize("query, pointer", [("limit=0", "/query/limit"), ("limit=x", "/query/limit"), ("status=lost", "/query/status"), ("label=x", "/query/label/0"), ("order=up", "/query/order")])
def test_a_bad_parameter_is_named(http, query, pointer):
    answer = http.get(f"/v1/jobs?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["pointer"] == pointer


def test_cancel_of_a_queued_job_and_then_of_a_finished_one(http, spec):
    job = _submit(http, spec)
    answer = http.post(f"/v1/jobs/{job['id']}/cancel", json={"mode": "now"})
    assert answer.status_code == 202
    assert answer.json()["status"] == "cancelled"
    for action in ("pause", "resume"):
        again = http.post(f"/v1/jobs/{job['id']}/{action}")
        document = again.json()
        assert (again.status_code, document["code"], document["job_status"]) == (409, "illegal_transition", "cancelled")
        assert "cancelled" in document["detail"]
        assert isinstance(document["allowed"], list)


def test_pause_and_resume_of_a_queued_job(http, spec):
    job = _submit(http, spec)
    paused = http.post(f"/v1/jobs/{job['id']}/pause")
    assert (paused.status_code, paused.json()["status"]) == (202, "paused")
    resumed = http.post(f"/v1/jobs/{job['id']}/resume")
    assert (resumed.status_code, resumed.json()["status"]) == (202, "queued")
    assert resumed.json()["version"] > paused.json()["version"] > job["version"]


def test_a_wrong_method_is_405(http):
    answer = http.delete("/v1/jobs")
    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET, POST"


def test_etag_and_304(http, spec):
    job = _submit(http, spec)
    etag = http.get(f"/v1/jobs/{job['id']}").headers["etag"]
    assert etag == f'"{job["version"]}"'
    assert http.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": etag}).status_code == 304
    http.post(f"/v1/jobs/{job['id']}/cancel")
    assert http.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": etag}).status_code == 200


def test_a_long_poll_answers_when_the_job_changes(http, spec, store):
    job = _submit(http, spec)
    threading.Timer(0.3, store.request_pause, [job["id"]]).start()
    started = time.monotonic()
    answer = http.get(f"/v1/jobs/{job['id']}", params={"wait": 20})
    assert answer.json()["status"] == "paused"
    assert 0.2 < time.monotonic() - started < 10


def test_a_long_poll_ends_without_a_change(http, spec):
    job = _submit(http, spec)
    answer = http.get(f"/v1/jobs/{job['id']}", params={"wait": 0.1}, headers={"If-None-Match": f'"{job["version"]}"'})
    assert answer.status_code == 304


def test_the_spec_as_json_and_yaml(http, spec):
    import yaml

    _submit(http, spec)
    as_json = http.get("/v1/jobs/demo/spec")
    as_yaml = http.get("/v1/jobs/demo/spec", headers={"Accept": "application/yaml"})
    assert as_json.json()["defaults"]["problems_per_step"] == 16
    assert as_yaml.headers["content-type"].startswith("application/yaml")
    assert yaml.safe_load(as_yaml.text) == as_json.json()


def test_stages_show_their_composition(http, spec):
    _submit(http, spec)
    page = http.get("/v1/jobs/demo/stages").json()
    assert [stage["name"] for stage in page["data"]] == ["arithmetic", "strings"]
    stage = http.get("/v1/jobs/demo/stages/strings").json()
    assert stage["resolved"]["composition"]["terms"][0]["objective"]["kind"] == "jensen_shannon"
    missing = http.get("/v1/jobs/demo/stages/nothing")
    assert missing.status_code == 404 and "arithmetic" in missing.json()["detail"]


def test_report_is_the_file_of_the_run(http, spec, settings):
    job = _submit(http, spec)
    assert http.get("/v1/jobs/demo/report").status_code == 404
    folder = settings.run_dir(job["id"])
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"score_matrix": [[0.5]]}))
    assert http.get("/v1/jobs/demo/report").json() == {"score_matrix": [[0.5]]}


def test_logs_are_tailed_and_made_harmless(http, spec, settings):
    job = _submit(http, spec)
    assert http.get("/v1/jobs/demo/logs").text == ""
    folder = settings.run_dir(job["id"])
    folder.mkdir(parents=True)
    (folder / "driver.log").write_bytes(b"one\ntwo \x1b[31mred\nthree\n")
    answer = http.get("/v1/jobs/demo/logs", params={"tail": 2})
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text == "two \\x1b[31mred\nthree\n"


def test_service_routes(http, key):
    capabilities = http.get("/v1/capabilities").json()
    assert set(capabilities["recipes"]) >= {"grpo", "sdpo", "sft"}
    assert capabilities["recipes"]["grpo"]["properties"]["clip_low"]["default"] == 0.2
    assert set(capabilities["domains"]) == {"arithmetic", "strings", "tool_call", "dataset"}
    assert "math_equivalence" in capabilities["verifiers"]
    assert {"forward_kl", "reverse_kl", "jensen_shannon"} <= set(capabilities["objectives"])
    assert capabilities["cluster"] == {"CPU": 16.0, "GPU": 0.0}
    assert capabilities["limits"]["stages"] == 64
    assert http.get("/v1/schemas/job").json()["properties"]["stages"]["minItems"] == 1
    assert http.get("/version").json()["api"] == "v1"


def test_readiness_degrades_without_ray_and_closes_without_a_store(anonymous, store, monkeypatch):
    answer = anonymous.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    assert answer.json()["checks"]["mlflow"] == "not reachable"

    def broken() -> None:
        raise OSError("secret place")

    monkeypatch.setattr(store, "ping", broken)
    answer = anonymous.get("/readyz")
    assert (answer.status_code, answer.json()["checks"]["store"]) == (503, "unavailable")
    assert "secret place" not in answer.text
    assert anonymous.get("/healthz").status_code == 200


def test_prometheus_counts_jobs_and_requests(http, spec):
    _submit(http, spec)
    text = http.get("/metrics").text
    assert 'holdfast_jobs{status="queued"} 1.0' in text
    assert 'holdfast_jobs{status="running"} 0.0' in text
    assert 'holdfast_http_requests_total{method="POST",route="/v1/jobs",status="201"} 1.0' in text
    assert "holdfast_queue_age_seconds" in text
    http.get("/v1/jobs/demo")
    assert 'route="/v1/jobs/{job_id}"' in http.get("/metrics").text


def test_an_unexpected_error_is_a_500_without_its_words(http, store, monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("password in here")

    monkeypatch.setattr(store, "get_job", broken)
    answer = http.get("/v1/jobs/demo")
    document = answer.json()
    assert (answer.status_code, document["code"]) == (500, "internal_error")
    assert "password" not in answer.text and "Traceback" not in answer.text
    assert document["request_id"] in caplog.text and "password in here" in caplog.text


def _run_to_the_end(store, job_id: str, outcome: str) -> str:
    """What scheduler and attempt would write; the attempt's id."""
    epoch = store.acquire_lease("tests", 60.0)
    attempt = store.start_attempt(job_id, epoch=epoch)
    store.mark_running(attempt.id)
    for index in range(2):
        store.set_stage(attempt.id, index, status="succeeded", step=20, total_steps=20, message="reward 0.9")
    for row, mean in ((0, 0.25), (1, 0.75), (2, 0.5)):
        for domain in ("arithmetic", "strings"):
            scores = [1.0] * round(64 * mean) + [0.0] * round(64 * (1 - mean))
            store.record_evaluation(
                attempt.id, row=row, stage_index=row - 1 if row else None, step=20 if row else 0, domain=domain, mean=mean, num_problems=64,
                truncation_rate=0.125, mean_tokens=5.5, scores=scores, at="boundary",
            )
    store.commit_checkpoint(
        attempt.id, id="ckpt_1", stage_index=1, step=20, global_step=40, path="/runs/x", manifest_sha256="a" * 64, kind="stage", policy_version=3
    )
    store.finish_attempt(attempt.id, outcome, reason=None, message="all stages done")
    return attempt.id


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_cancel_of_a_finished_job_is_a_409_that_says_so(http, spec, store, outcome):
    job = _submit(http, spec)
    _run_to_the_end(store, job["id"], outcome)
    for action in ("cancel", "pause", "resume"):
        answer = http.post(f"/v1/jobs/{job['id']}/{action}")
        document = answer.json()
        assert (answer.status_code, document["code"]) == (409, "illegal_transition")
        assert f"already {outcome}" in document["detail"]
        assert (document["job_status"], document["allowed"]) == (outcome, [])
    assert http.get(f"/v1/jobs/{job['id']}").json()["status"] == outcome


def test_what_a_finished_job_shows(http, spec, store, settings, monkeypatch):
    job = _submit(http, spec)
    attempt = _run_to_the_end(store, job["id"], "succeeded")
    folder = settings.run_dir(job["id"])
    folder.mkdir(parents=True)
    links = {None: "http://mlflow/#/experiments/3/runs/parent", "strings": "http://mlflow/#/experiments/3/runs/child"}
    monkeypatch.setattr("api.views.run_links", lambda run_dir, base: links if run_dir == folder else {})
    shown = http.get("/v1/jobs/demo").json()
    assert shown["status"] == "succeeded" and shown["finished_at"] is not None
    assert shown["progress"] == {"stages_done": 2, "stages_total": 2, "steps_done": 40, "steps_total": 40}
    assert shown["links"]["mlflow"] == "http://mlflow/#/experiments/3/runs/parent"
    assert shown["stages"][1]["mlflow_url"].endswith("/runs/child") and shown["stages"][0]["mlflow_url"] is None

    matrix = http.get("/v1/jobs/demo/evaluations").json()
    assert matrix["rows"] == ["base", "arithmetic", "strings"]
    assert matrix["score_matrix"] == [[0.25, 0.25], [0.75, 0.75], [0.5, 0.5]]
    assert matrix["retention"]["backward_transfer"]["value"] == pytest.approx(-0.25)
    assert matrix["retention"]["forgetting"]["value"] == pytest.approx(0.25)
    assert matrix["retention"]["stage_gains"][0]["value"] == pytest.approx(0.5)
    assert len(matrix["data"]) == 6 and matrix["data"][0]["stage"] is None

    [checkpoint] = http.get("/v1/jobs/demo/checkpoints").json()["data"]
    assert (checkpoint["stage"], checkpoint["step"], checkpoint["kind"]) == ("strings", 20, "stage")
    assert checkpoint["policy_path"] == str(folder / "stages" / "1-strings" / "policy")
    stage = http.get("/v1/jobs/demo/stages/strings").json()
    assert [row["row"] for row in stage["evaluations"]] == [2, 2] and len(stage["checkpoints"]) == 1

    logs = settings.ray_temp_dir / "session_of_tests" / "logs"
    logs.mkdir(parents=True)
    try:
        (logs / f"job-driver-{attempt}.log").write_text("from the driver\n")
        assert http.get("/v1/jobs/demo/logs").text == "from the driver\n"
    finally:
        shutil.rmtree(settings.ray_temp_dir)


def test_metrics_come_from_the_log(http, spec, settings):
    job = _submit(http, spec)
    log = RunLog(settings.run_dir(job["id"]))
    for step in range(4):
        log.metrics(stage="arithmetic", stage_index=0, step=step, global_step=step, values={"reward": step / 4, "loss": 1.0 - step})
    log.metrics(stage="strings", stage_index=1, step=0, global_step=4, values={"reward": 1.0})
    log.close()
    metrics = http.get("/v1/jobs/demo/metrics", params={"key": "reward", "stage": "arithmetic", "since_step": 2}).json()
    assert metrics["keys"] == ["reward"]
    assert [(point["step"], point["value"]) for point in metrics["data"]] == [(2, 0.5), (3, 0.75)]
    everything = http.get("/v1/jobs/demo/metrics").json()
    assert everything["keys"] == ["loss", "reward"]
    assert [point["value"] for point in everything["data"] if point["key"] == "loss"] == [1.0, 0.0, -1.0, -2.0]
    assert all(point["time"].startswith("20") for point in everything["data"])
    assert len(http.get("/v1/jobs/demo/metrics", params={"key": "reward", "max_points": 2}).json()["data"]) == 2


def test_a_store_that_is_away_is_a_503(http, store, monkeypatch):
    def away(*args, **kwargs):
        raise HoldfastError("connection to db.internal refused", reason="store_unavailable")

    monkeypatch.setattr(store, "get_job", away)
    answer = http.get("/v1/jobs/demo")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "service_unavailable", "2")
    assert "db.internal" not in answer.text



def test_a_store_that_is_away_while_the_key_is_looked_up_is_a_503(settings, store, monkeypatch):
    def away(text):
        raise HoldfastError("connection to db.internal refused", reason="store_unavailable")

    monkeypatch.setattr(store, "verify_api_key", away)
    http = TestClient(create_app(settings, store=store))
    assert http.get("/version", headers={"Authorization": "Bearer hf_other"}).status_code == 503


def test_a_store_without_its_migrations_is_not_ready(tmp_path):
    settings = Settings(home=tmp_path, mlflow_port=9)
    store = JobStore(settings.database)
    answer = TestClient(create_app(settings, store=store)).get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
    store.close()
