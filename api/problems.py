"""Every error that leaves the API, as an RFC 9457 problem document.

Invariant: a client never sees a traceback or FastAPI's own error body; each problem has a ``code`` from the table below,
a ``request_id`` that the log has too, and ``errors`` that name each fault by a JSON pointer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from cluster.errors import Conflict, HoldfastError, IllegalTransition, NotFound, SpecError

MEDIA_TYPE = "application/problem+json"
UNAVAILABLE_REASONS = ("store_unavailable", "store_unfit", "store_unusable")
TYPE_PREFIX = "/v1/problems/"


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One row of the table of problems."""

    status: int
    title: str
    meaning: str


PROBLEMS: dict[str, ProblemKind] = {
    "invalid_spec": ProblemKind(422, "The job or study file cannot be accepted", "errors lists every fault that was found, each with a JSON pointer into the file."),
    "invalid_request": ProblemKind(422, "A parameter of the request is not valid", "errors lists the parameters, as /query/..., /path/..., /header/... or a pointer into the body."),
    "malformed_body": ProblemKind(400, "The body cannot be read", "The body must be one JSON or YAML document: no NaN or infinity, no duplicate keys, no YAML anchors, at most 64 levels deep."),
    "bad_request": ProblemKind(400, "The request cannot be understood", "Something about the request as a whole is wrong; detail says what."),
    "unauthorized": ProblemKind(401, "An API key is needed", "Send the header 'Authorization: Bearer hf_...'. The first start of the service writes a key to the file api_key under its home."),
    "not_found": ProblemKind(404, "Not found", "There is no such route, job, study, stage or record."),
    "method_not_allowed": ProblemKind(405, "Method not allowed", "The route exists, but not with this method."),
    "request_timeout": ProblemKind(408, "The body did not arrive in time", "A request body must arrive whole within 30 seconds."),
    "conflict": ProblemKind(409, "The request contradicts what is stored", "detail says what stands against it."),
    "illegal_transition": ProblemKind(409, "The job or study cannot do that in its present state", "job_status is its state and allowed lists the actions it accepts now."),
    "body_too_large": ProblemKind(413, "The body is too large", "A job file is at most 1 MB, a study with its records 64 MB; data belongs in files that the job file names."),
    "unsupported_media_type": ProblemKind(415, "The body's media type is not accepted", "Send application/json or application/yaml."),
    "idempotency_key_reused": ProblemKind(422, "The idempotency key was used with another body", "A key stands for one submission. Use a new key for a new job, or send the same body to get the first answer again."),
    "too_many_requests": ProblemKind(429, "Too many requests", "Wait for Retry-After seconds."),
    "internal_error": ProblemKind(500, "Something went wrong inside the service", "The log has the cause under the request_id."),
    "service_unavailable": ProblemKind(503, "The service cannot answer now", "A part that the answer needs is not there; detail says which. Wait for Retry-After seconds."),
}
CODE_BY_STATUS = {400: "bad_request", 401: "unauthorized", 404: "not_found", 405: "method_not_allowed", 408: "request_timeout", 409: "conflict", 413: "body_too_large", 415: "unsupported_media_type", 422: "invalid_request", 429: "too_many_requests", 503: "service_unavailable"}


class ProblemError(Exception):
    """Raised by the API's own code; becomes the problem document with this ``code``."""

    def __init__(self, code: str, detail: str, *, errors: list[dict] | None = None, headers: dict[str, str] | None = None, **members: Any):
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = errors or []
        self.headers = headers or {}
        self.members = members


def problem_response(
    code: str,
    detail: str,
    *,
    request_id: str = "",
    instance: str = "",
    status: int | None = None,
    errors: list[dict] | None = None,
    headers: dict[str, str] | None = None,
    **members: Any,
) -> JSONResponse:
    """The problem document as a response; ``members`` are extension members such as ``allowed``."""
    kind = PROBLEMS[code]
    document = {
        "type": TYPE_PREFIX + code,
        "title": kind.title,
        "status": status or kind.status,
        "detail": detail,
        "instance": instance,
        "code": code,
        "request_id": request_id,
        "errors": errors or [],
        **members,
    }
    return JSONResponse(document, status_code=status or kind.status, media_type=MEDIA_TYPE, headers=headers)


def pointer(location: tuple[Any, ...]) -> str:
    """A JSON pointer (RFC 6901) from a path of keys and indices."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def _answer(request: Request, code: str, detail: str, **members: Any) -> JSONResponse:
    request_id = getattr(request.state, "request_id", "")
    return problem_response(code, detail, request_id=request_id, instance=request.url.path, **members)


async def _on_problem(request: Request, error: ProblemError) -> JSONResponse:
    return _answer(request, error.code, error.detail, errors=error.errors, headers=error.headers, **error.members)


async def _on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    code = CODE_BY_STATUS.get(error.status_code, "internal_error" if error.status_code >= 500 else "bad_request")
    detail = PROBLEMS[code].meaning if error.status_code in (404, 405) else str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(sorted(_methods_of_path(request)))
    return _answer(request, code, detail, status=error.status_code, headers=headers)


def _methods_of_path(request: Request) -> set[str]:
    """Of all routes with this path; the router's own 405 names those of the first one."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return found


async def _on_validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
    faults = [
        {"pointer": pointer(fault["loc"][1:] if fault["loc"][:1] == ("body",) else fault["loc"]), "detail": fault["msg"], "code": fault["type"]}
        for fault in error.errors()
    ]
    if any(fault["code"] == "json_invalid" for fault in faults):
        return _answer(request, "malformed_body", "the body is not JSON", errors=faults)
    return _answer(request, "invalid_request", f"{len(faults)} parameter(s) are not valid", errors=faults)


async def _on_holdfast_error(request: Request, error: HoldfastError) -> JSONResponse:
    if isinstance(error, SpecError):
        return _answer(request, "invalid_spec", error.message, errors=error.details.get("faults", []))
    if isinstance(error, NotFound):
        return _answer(request, "not_found", error.message)
    if isinstance(error, IllegalTransition):
        members = {name: error.details[name] for name in ("status", "allowed") if name in error.details}
        return _answer(request, "illegal_transition", error.message, errors=[], job_status=members.get("status"), allowed=members.get("allowed", []))
    if isinstance(error, Conflict):
        code = "idempotency_key_reused" if "idempotency" in error.reason or "idempotency" in error.message.lower() else "conflict"
        return _answer(request, code, error.message)
    raise error


def unexpected_response(error: Exception, request_id: str, instance: str) -> JSONResponse:
    """For what no handler knows: 503 where the store is away, 500 otherwise. The error's own words stay in the log."""
    if isinstance(error, HoldfastError) and error.reason in UNAVAILABLE_REASONS:
        detail = "the job store does not answer; nothing was changed"
        return problem_response("service_unavailable", detail, request_id=request_id, instance=instance, headers={"Retry-After": "2"})
    detail = f"an internal error; the service's log has it under request {request_id}"
    return problem_response("internal_error", detail, request_id=request_id, instance=instance)


def add_problem_handlers(app: FastAPI) -> None:
    """Replace every error body that FastAPI and Starlette would send. The unhandled rest is caught by ``api.observe``."""
    app.add_exception_handler(ProblemError, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HoldfastError, _on_holdfast_error)
