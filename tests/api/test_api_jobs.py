"""Reading and steering jobs: pages, ETags, long polls, illegal transitions, parts of a job."""

from __future__ import annotations

import json
import threading
import time

import pytest


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
