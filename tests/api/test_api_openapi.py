"""The OpenAPI document: valid 3.1, named operations, problems and the key declared; and what importing the API loads."""

from __future__ import annotations

import subprocess
import sys

import pytest
from openapi_spec_validator import validate

from api.intake import OPEN_PATHS
from api.problems import PROBLEMS


@pytest.fixture
def document(http) -> dict:
    answer = http.get("/openapi.json")
    assert answer.status_code == 200
    return answer.json()


def _operations(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield method, path, operation


def test_it_validates_as_3_1(document):
    assert document["openapi"].startswith("3.1")
    validate(document)


def test_operations_are_named_after_their_handlers(document):
    names = [operation["operationId"] for _, _, operation in _operations(document)]
    assert len(names) == len(set(names)) == 33
    assert {"create_job", "get_job", "stream_events", "get_evaluations", "get_prometheus_metrics"} <= set(names)


def test_every_route_of_the_application_is_documented(app, document):
    documented = {(method.upper(), path) for method, path, _ in _operations(document)}
    served = {(method, route.path) for route in app.routes for method in route.methods if method != "HEAD"}
    assert served - documented == {("GET", "/openapi.json"), ("GET", "/docs")}


def test_errors_are_declared_as_problems(document):
    for method, path, operation in _operations(document):
        for status, response in operation["responses"].items():
            if int(status) >= 400 and (status, path) != ("503", "/readyz"):
                assert list(response["content"]) == ["application/problem+json"], (method, path, status)
                assert response["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
        if path not in OPEN_PATHS:
            assert "401" in operation["responses"], path


def test_the_key_is_declared(document):
    assert document["security"] == [{"api_key": []}]
    assert document["components"]["securitySchemes"]["api_key"]["scheme"] == "bearer"
    assert {path for _, path, operation in _operations(document) if operation.get("security") == []} == OPEN_PATHS


def test_the_job_file_is_the_body_of_a_submission(document):
    content = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "application/yaml"}
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/JobSpec"}
    assert document["components"]["schemas"]["JobSpec"]["additionalProperties"] is False
    assert "description" in document["components"]["schemas"]["Evaluations"]["properties"]["score_matrix"]


@pytest.mark.parametrize("code", PROBLEMS)
def test_each_problem_type_leads_to_its_meaning(http, code):
    answer = http.get(f"/v1/problems/{code}")
    assert answer.json() == {"code": code, "status": PROBLEMS[code].status, "title": PROBLEMS[code].title, "meaning": PROBLEMS[code].meaning}


def test_the_api_loads_no_heavy_library():
    code = "import sys, api.app, api.client; print(sorted({'torch', 'ray', 'vllm', 'mlflow', 'transformers'} & {m.split('.')[0] for m in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_client_alone_loads_no_server():
    code = "import sys, api.client; print(sorted({'fastapi', 'sqlalchemy', 'numpy'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
