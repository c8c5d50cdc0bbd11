"""What is measured of every request: an id, a log line on failure, counts and latency for Prometheus.

Invariant: this is the outermost layer, so no exception leaves the application and every answer carries ``X-Request-Id``.
Labels are route templates, never raw paths, so the number of series is bounded.
"""

from __future__ import annotations

import logging
import time
import uuid

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import unexpected_response

log = logging.getLogger("holdfast.api")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestMetrics:
    """The HTTP series of one application; a registry of its own, so that two applications in a process do not clash."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("holdfast_http_requests", "Answered requests", ["method", "route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "holdfast_http_request_duration_seconds",
            "Seconds until the last byte of the answer; streams and long polls not counted",
            ["method", "route"],
            buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
            registry=self.registry,
        )
        self.in_flight = Gauge("holdfast_http_requests_in_flight", "Requests that are being answered, streams included", registry=self.registry)
        self.streamed_events = Counter("holdfast_events_streamed", "Events sent to watchers", registry=self.registry)


class Observe:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics):
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = "req_" + uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", []))
                headers.append((b"x-request-id", request_id.encode()))
                headers.append((b"x-content-type-options", b"nosniff"))
                message = {**message, "headers": headers}
            await send(message)

        started = time.perf_counter()
        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            log.error("request %s failed: %s %r", request_id, scope["method"], scope["path"], exc_info=error)
            if status:
                raise
            await unexpected_response(error, request_id, scope["path"])(scope, receive, send_with_id)
        finally:
            self._metrics.in_flight.dec()
            self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.requests.labels(method, route, str(status)).inc()
        waits = b"wait=" in scope.get("query_string", b"") or b"follow=" in scope.get("query_string", b"")
        if not route.endswith("/stream") and not waits:
            self._metrics.seconds.labels(method, route).observe(seconds)
