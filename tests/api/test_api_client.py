"""The client: retries that are safe, problems as exceptions, paths made absolute."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from api.client import ApiError, HoldfastClient, UnreachableError
from api.job_paths import with_absolute_paths


class _Scripted(httpx.BaseTransport):
    """Answers from a list: a response, or an exception to raise."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _client(transport, **options) -> HoldfastClient:
    return HoldfastClient("http://service", "hf_key", transport=transport, backoff_s=0.001, **options)


def test_a_submission_is_retried_with_the_same_key():
    transport = _Scripted(httpx.ConnectError("down"), httpx.Response(503), httpx.ReadTimeout("slow"), httpx.Response(201, json={"id": "job_1"}))
    assert _client(transport).submit({"name": "a"}) == {"id": "job_1"}
    keys = {request.headers["idempotency-key"] for request in transport.requests}
    assert len(transport.requests) == 4 and len(keys) == 1 and len(keys.pop()) == 36
    assert all(request.headers["authorization"] == "Bearer hf_key" for request in transport.requests)


def test_two_submissions_have_two_keys():
    transport = _Scripted(httpx.Response(201, json={}), httpx.Response(201, json={}))
    client = _client(transport)
    client.submit({})
    client.submit({})
    first, second = (request.headers["idempotency-key"] for request in transport.requests)
    assert first != second


def test_retry_after_is_honoured(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("api.client.time.sleep", slept.append)
    transport = _Scripted(httpx.Response(429, headers={"Retry-After": "7"}), httpx.Response(200, json={}))
    _client(transport).get("demo")
    assert slept == [7.0]


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 422, 500])
def test_a_refusal_is_raised_at_once_with_its_problem(status):
    document = {"status": status, "code": "some_code", "detail": "no", "errors": [{"pointer": "/a", "detail": "bad", "code": "x"}]}
    transport = _Scripted(httpx.Response(status, json=document))
    with pytest.raises(ApiError, match="/a: bad") as caught:
        _client(transport).get("demo")
    assert (caught.value.status, caught.value.code, caught.value.problem) == (status, "some_code", document)
    assert len(transport.requests) == 1


def test_an_answer_that_is_no_problem_document_is_an_error_too():
    with pytest.raises(ApiError, match="HTTP 404"):
        _client(_Scripted(httpx.Response(404, text="<html>"))).get("demo")


def test_it_gives_up_after_the_retries():
    transport = _Scripted(*[httpx.ConnectError("refused")] * 3)
    with pytest.raises(UnreachableError, match="refused"):
        _client(transport, retries=2).get("demo")
    assert len(transport.requests) == 3


def test_wait_follows_the_version():
    running = {"id": "job_1", "status": "running", "version": 4}
    done = {"id": "job_1", "status": "succeeded", "version": 5}
    transport = _Scripted(httpx.Response(200, json=running), httpx.Response(304), httpx.Response(200, json=done))
    assert _client(transport).wait("demo") == done
    assert [request.headers.get("if-none-match") for request in transport.requests] == [None, '"4"', '"4"']


def test_wait_has_a_deadline():
    running = {"id": "job_1", "status": "running", "version": 4}
    transport = _Scripted(*[httpx.Response(200, json=running)] * 10_000)
    with pytest.raises(TimeoutError, match="still running"):
        _client(transport).wait("demo", timeout_s=0.02)


def test_only_paths_that_exist_here_become_absolute(tmp_path: Path):
    (tmp_path / "models").mkdir()
    (tmp_path / "data.jsonl").write_text("")
    dataset = {"kind": "dataset", "path": "data.jsonl"}
    spec = {
        "name": "models",
        "model": {"path": "models"},
        "labels": {"path": "models"},
        "stages": [{"domain": dataset}, {"domains": [{"name": "a", "domain": dataset}]}, {"domain": {"kind": "dataset", "path": "there.jsonl"}}, 7],
        "evaluation": {"domains": [{"name": "b", "domain": dataset}]},
    }
    before = json.dumps(spec)
    made = with_absolute_paths(spec, tmp_path)
    data = str(tmp_path / "data.jsonl")
    assert made["model"]["path"] == str(tmp_path / "models")
    assert made["stages"][0]["domain"]["path"] == made["stages"][1]["domains"][0]["domain"]["path"] == data
    assert made["evaluation"]["domains"][0]["domain"]["path"] == data
    assert made["stages"][2]["domain"]["path"] == "there.jsonl"
    assert made["labels"] == {"path": "models"}
    assert json.dumps(spec) == before


@pytest.mark.parametrize("spec", [{}, {"model": None}, {"stages": {"a": 1}}, {"stages": [None]}, {"model": {"path": 3}}, {"model": {"path": "a\x00b"}}, {"model": {"path": "x" * 5000}}])
def test_what_is_no_job_file_is_left_alone(spec):
    assert with_absolute_paths(spec) == spec


def test_the_client_against_the_service(client, spec):
    plan = client.validate(spec)
    assert plan["total_steps"] == 40
    job = client.submit(spec, idempotency_key="once")
    assert client.submit(spec, idempotency_key="once")["id"] == job["id"]
    assert [found["id"] for found in client.list(name="demo")["data"]] == [job["id"]]
    assert client.pause("demo")["status"] == "paused"
    assert client.resume("demo")["status"] == "queued"
    assert client.cancel("demo")["status"] == "cancelled"
    assert client.wait("demo", timeout_s=5)["status"] == "cancelled"
    assert client.events("demo")["data"][0]["seq"] == 1
    assert client.checkpoints("demo")["data"] == []
    assert client.evaluations("demo")["score_matrix"] == []
    assert client.metrics("demo")["data"] == []
    assert client.logs("demo") == ""
    assert client.spec("demo")["name"] == "demo"
    assert len(client.stages("demo")["data"]) == 2
    assert "stages" in client.schema()["properties"]
    assert "grpo" in client.capabilities()["recipes"]
    assert client.ready()["status"] == "degraded"
    with pytest.raises(ApiError) as caught:
        client.report("demo")
    assert caught.value.status == 404


def test_the_key_file_of_the_installation(settings, server, key):
    with pytest.raises(ApiError, match="start the service"):
        HoldfastClient.from_settings(settings)
    settings.api_key_file.write_text(key + "\n")
    with HoldfastClient.from_settings(settings) as client:
        client._http.base_url = server
        assert client.version()["api"] == "v1"
