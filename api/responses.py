"""The error answers that a route declares, for OpenAPI. Every route may also answer the ones in ``EVERY_ROUTE``."""

from __future__ import annotations

from typing import Any

from api.problems import MEDIA_TYPE, PROBLEMS, TYPE_PREFIX
from api.schemas import Problem


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """``responses=`` of a route for these problem codes; codes of one status share an entry with an example each."""
    declared: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        kind = PROBLEMS[code]
        entry = declared.setdefault(kind.status, {"description": kind.title, "content": {MEDIA_TYPE: {"schema": REF, "examples": {}}}})
        if kind.title not in entry["description"]:
            entry["description"] += f"; or: {kind.title[0].lower()}{kind.title[1:]}"
        entry["content"][MEDIA_TYPE]["examples"][code] = {"value": _example(code)}
    return declared


REF = {"$ref": f"#/components/schemas/{Problem.__name__}"}


def _example(code: str) -> dict[str, Any]:
    kind = PROBLEMS[code]
    return {
        "type": TYPE_PREFIX + code,
        "title": kind.title,
        "status": kind.status,
        "detail": kind.meaning,
        "instance": "/v1/jobs/demo",
        "code": code,
        "request_id": "req_0f3c",
        "errors": [],
    }


EVERY_ROUTE = problems("unauthorized", "invalid_request", "internal_error")
OPEN_ROUTE = problems("internal_error")
JOB_ROUTE = problems("not_found")
