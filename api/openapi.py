"""The OpenAPI 3.1 document: FastAPI's, with the key, the job file and the problem documents written in.

Invariant: an operation's id is its handler's name, every operation declares its error answers as problem documents, and
only the open ones carry no security requirement.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from api.intake import OPEN_PATHS
from api.problems import MEDIA_TYPE
from api.responses import EVERY_ROUTE, OPEN_ROUTE
from api.schemas import Problem
from cluster.spec.job import JobSpec
from cluster.spec.study import StudySpec

REF = "#/components/schemas/{model}"
DESCRIPTION = (
    "Submit continual post-training jobs and follow them. Every route needs an API key (`Authorization: Bearer hf_...`) "
    "except `/healthz` and `/readyz`. Errors are RFC 9457 problem documents."
)
TAGS = [
    {"name": "jobs", "description": "Submit a job, look at it, ask for a change."},
    {"name": "studies", "description": "Many jobs of one file: arms, orders and seeds, steered and reported together."},
    {"name": "stages", "description": "The ordered parts of a job."},
    {"name": "events", "description": "What happened, as pages or as a resumable stream."},
    {"name": "logs", "description": "What the job's processes printed."},
    {"name": "metrics", "description": "Numbers by step, from the job's own log."},
    {"name": "checkpoints", "description": "Saved states and trained policies."},
    {"name": "evaluations", "description": "The score matrix: what was gained, what was lost."},
    {"name": "service", "description": "The installation itself."},
]


def operation_id(route: APIRoute) -> str:
    return route.name


def add_openapi(app: FastAPI) -> None:
    """Make ``app.openapi()`` return the completed document, built once."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=TAGS)
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for model in (JobSpec, StudySpec, Problem):
        _add_model(schemas, model)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer", "bearerFormat": "hf_...", "description": "an API key"}}
    document["security"] = [{"api_key": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete_operation(operation, is_open=path in OPEN_PATHS)
    return document


def _add_model(schemas: dict[str, Any], model: type) -> None:
    schema = model.model_json_schema(ref_template=REF)
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema


def _complete_operation(operation: dict[str, Any], *, is_open: bool) -> None:
    responses = operation["responses"]
    default = responses.get("422", {}).get("content", {}).get("application/json", {}).get("schema", {}).get("$ref", "")
    if default.endswith("HTTPValidationError"):
        del responses["422"]
    takes_parameters = "parameters" in operation or "requestBody" in operation
    for status, response in (OPEN_ROUTE if is_open else EVERY_ROUTE).items():
        if status == 422 and not takes_parameters:
            continue
        responses.setdefault(str(status), response)
    for status, response in responses.items():
        if int(status) >= 400 and MEDIA_TYPE in response.get("content", {}):
            response["content"] = {MEDIA_TYPE: response["content"][MEDIA_TYPE]}
        for media in response.get("content", {}).values():
            if "itemSchema" in media:  # OpenAPI 3.2's word for a stream's items, which FastAPI writes into a 3.1 document
                media["x-itemSchema"] = media.pop("itemSchema")
                media["schema"] = {"type": "string"}
        if int(status) < 400:
            response.setdefault("headers", {})["X-Request-Id"] = {"description": "also in the service's log", "schema": {"type": "string"}}
    if is_open:
        operation["security"] = []
