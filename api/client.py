"""The Python client: everything the HTTP API does, as plain synchronous calls.

Invariant: a call either returns the parsed answer or raises ``ApiError`` with the problem document. Submissions carry an
idempotency key of their own, so that every retry here is safe.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from api.job_paths import with_absolute_paths
from cluster.settings import Settings

RETRY_STATUSES = frozenset({408, 429, 502, 503, 504})
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
LONGEST_WAIT_S = 30.0


class ApiError(Exception):
    """The service refused. ``problem`` is the RFC 9457 document, ``errors`` its list of faults."""

    def __init__(self, problem: Mapping[str, Any]):
        self.problem = dict(problem)
        self.status = int(problem.get("status", 0))
        self.code = str(problem.get("code", "unknown"))
        self.errors: list[dict[str, str]] = list(problem.get("errors") or [])
        lines = [str(problem.get("detail") or problem.get("title") or "the service refused")]
        lines += [f"  {fault.get('pointer') or '/'}: {fault.get('detail')}" for fault in self.errors]
        super().__init__("\n".join(lines))


class UnreachableError(ApiError):
    """No answer from the service within the retries."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job as the stream gave it."""

    seq: int
    type: str
    data: dict[str, Any]


class HoldfastClient:
    """``with HoldfastClient(url, key) as client: job = client.submit(spec)``."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeout_s: float = 60.0,
        retries: int = 6,
        backoff_s: float = 0.25,
        transport: httpx.BaseTransport | None = None,
        http: httpx.Client | None = None,
    ):
        self._retries = retries
        self._backoff_s = backoff_s
        timeout = httpx.Timeout(timeout_s, connect=10.0)
        self._http = http or httpx.Client(base_url=base_url, timeout=timeout, transport=transport)
        self._http.headers["Authorization"] = f"Bearer {api_key}"

    @classmethod
    def from_settings(cls, settings: Settings, **options: Any) -> HoldfastClient:
        """A client of the installation on this machine, with the key that its first start wrote."""
        try:
            key = settings.api_key_file.read_text(encoding="utf-8").strip()
        except OSError:
            raise ApiError({"code": "no_api_key", "detail": f"there is no API key at {settings.api_key_file}; start the service first"}) from None
        return cls(settings.api_url, key, **options)

    def __enter__(self) -> HoldfastClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- jobs --------------------------------------------------------------------------------------------------------

    def submit(self, spec: Mapping[str, Any], *, idempotency_key: str | None = None) -> dict[str, Any]:
        """Create a job from a job file's content; local paths in it are made absolute against this process's folder."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4()), "Content-Type": "application/json"}
        return self._json("POST", "/v1/jobs", content=_body(spec), headers=headers)

    def validate(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """The plan that a submission would become; nothing is stored."""
        headers = {"Content-Type": "application/json"}
        return self._json("POST", "/v1/jobs", content=_body(spec), params={"dry_run": "true"}, headers=headers)

    def get(self, job: str) -> dict[str, Any]:
        """A job by id or by name (the newest of that name)."""
        return self._json("GET", f"/v1/jobs/{job}")

    def list(
        self,
        *,
        status: str | None = None,
        name: str | None = None,
        label: Mapping[str, str] | None = None,
        limit: int = 20,
        after: str | None = None,
        order: str = "desc",
    ) -> dict[str, Any]:
        """One page of jobs: ``data``, ``has_more`` and ``last_id``, which is the next call's ``after``."""
        params: list[tuple[str, str]] = [("limit", str(limit)), ("order", order)]
        params += [(key, value) for key, value in (("status", status), ("name", name), ("after", after)) if value is not None]
        params += [("label", f"{key}={value}") for key, value in (label or {}).items()]
        return self._json("GET", "/v1/jobs", params=params)

    def cancel(self, job: str, *, mode: str = "graceful") -> dict[str, Any]:
        return self._json("POST", f"/v1/jobs/{job}/cancel", json={"mode": mode})

    def pause(self, job: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/jobs/{job}/pause")

    def resume(self, job: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/jobs/{job}/resume")

    def wait(self, job: str, *, timeout_s: float | None = None, until: frozenset[str] = TERMINAL) -> dict[str, Any]:
        """Block until the job's status is in ``until``; returns the job. Raises ``TimeoutError``."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        current = self.get(job)
        while current["status"] not in until:
            left = LONGEST_WAIT_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"job {current['id']} is still {current['status']} after {timeout_s:g} s")
            headers = {"If-None-Match": f'"{current["version"]}"'}
            response = self._request("GET", f"/v1/jobs/{current['id']}", params={"wait": f"{min(left, LONGEST_WAIT_S):.3f}"}, headers=headers)
            if response.status_code != 304:
                current = response.json()
        return current

    # -- parts of a job ----------------------------------------------------------------------------------------------

    def spec(self, job: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{job}/spec")

    def stages(self, job: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{job}/stages")

    def events(self, job: str, *, after: int = 0, limit: int = 100) -> dict[str, Any]:
        """One page of events with ``seq`` above ``after``."""
        return self._json("GET", f"/v1/jobs/{job}/events", params={"after": after, "limit": limit})

    def stream(self, job: str, *, after: int = 0) -> Iterator[dict[str, Any]]:
        """Events as they happen, each once and in order, until the job has ended.

        A lost connection is taken up again at the last event seen (``Last-Event-ID``); it gives up, with the cause, after
        ``retries`` connections in a row that brought nothing.
        """
        last, failures = after, 0
        while True:
            try:
                for event in self._stream_once(job, last):
                    last, failures = event.seq, 0
                    yield event.data
                if self.get(job)["status"] in TERMINAL and not self.events(job, after=last, limit=1)["data"]:
                    return
            except (httpx.TransportError, UnreachableError) as error:
                failures += 1
                if failures > self._retries:
                    raise _unreachable(error) from error
            else:
                failures = 0
            time.sleep(min(self._backoff_s * 2**failures, 5.0))

    def metrics(self, job: str, *, key: str | None = None, stage: str | None = None, since_step: int | None = None, max_points: int | None = None) -> dict[str, Any]:
        params = {"key": key, "stage": stage, "since_step": since_step, "max_points": max_points}
        return self._json("GET", f"/v1/jobs/{job}/metrics", params={name: value for name, value in params.items() if value is not None})

    def evaluations(self, job: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{job}/evaluations")

    def checkpoints(self, job: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{job}/checkpoints")

    def report(self, job: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/jobs/{job}/report")

    def logs(self, job: str, *, tail: int | None = None) -> str:
        params = {} if tail is None else {"tail": tail}
        return self._request("GET", f"/v1/jobs/{job}/logs", params=params).text

    def follow_logs(self, job: str, *, tail: int = 200) -> Iterator[str]:
        """Pieces of the log as they are written, until the job has ended."""
        timeout = httpx.Timeout(10.0, read=None)
        with self._http.stream("GET", f"/v1/jobs/{job}/logs", params={"tail": tail, "follow": "true"}, timeout=timeout) as response:
            _raise_for_problem(response)
            yield from response.iter_text()

    # -- studies -----------------------------------------------------------------------------------------------------

    def submit_study(
        self,
        study: Mapping[str, Any],
        *,
        records: Sequence[Mapping[str, Any]] = (),
        folders: Sequence[Path] | None = None,
        idempotency_key: str | None = None,
    ) -> dict[str, Any]:
        """Create a study from a study file's content. Members that ``records`` has are not run; relative paths in the file stay as they
        are and are looked up in ``folders`` (this process's folder where None), so that the same file has the same members anywhere."""
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4()), "Content-Type": "application/json"}
        return self._json("POST", "/v1/studies", content=_study_body(study, records, folders), headers=headers)

    def validate_study(
        self, study: Mapping[str, Any], *, records: Sequence[Mapping[str, Any]] = (), folders: Sequence[Path] | None = None
    ) -> dict[str, Any]:
        """The plan that a submission would become; nothing is stored."""
        headers = {"Content-Type": "application/json"}
        return self._json("POST", "/v1/studies", content=_study_body(study, records, folders), params={"dry_run": "true"}, headers=headers)

    def study(self, study: str) -> dict[str, Any]:
        """A study with its members, by id or by name (the newest of that name)."""
        return self._json("GET", f"/v1/studies/{study}")

    def studies(self, *, name: str | None = None, limit: int = 20, after: str | None = None, order: str = "desc") -> dict[str, Any]:
        """One page of studies, without their members."""
        params = {"name": name, "limit": limit, "after": after, "order": order}
        return self._json("GET", "/v1/studies", params={key: value for key, value in params.items() if value is not None})

    def study_spec(self, study: str) -> dict[str, Any]:
        """The study file as it was sent."""
        return self._json("GET", f"/v1/studies/{study}/spec")

    def cancel_study(self, study: str, *, mode: str = "graceful") -> dict[str, Any]:
        return self._json("POST", f"/v1/studies/{study}/cancel", json={"mode": mode})

    def pause_study(self, study: str) -> dict[str, Any]:
        return self._json("POST", f"/v1/studies/{study}/pause")

    def resume_study(self, study: str) -> dict[str, Any]:
        """Paused members go on; failed and cancelled ones run again."""
        return self._json("POST", f"/v1/studies/{study}/resume")

    def study_records(self, study: str) -> list[dict[str, Any]]:
        """The records of the members that have ended, in the study's order."""
        return self._json("GET", f"/v1/studies/{study}/records")["data"]

    def study_report(self, study: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/studies/{study}/report")

    def wait_study(self, study: str, *, timeout_s: float | None = None, until: frozenset[str] = TERMINAL, poll_s: float = 2.0) -> dict[str, Any]:
        """Block until the study's status is in ``until``; returns the study. Raises ``TimeoutError``."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while (current := self.study(study))["status"] not in until:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"study {current['id']} is still {current['status']} after {timeout_s:g} s")
            time.sleep(poll_s)
        return current

    # -- the service -------------------------------------------------------------------------------------------------

    def capabilities(self) -> dict[str, Any]:
        return self._json("GET", "/v1/capabilities")

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of the job file."""
        return self._json("GET", "/v1/schemas/job")

    def version(self) -> dict[str, Any]:
        return self._json("GET", "/version")

    def ready(self) -> dict[str, Any]:
        """The readiness answer, whether ready or not; never retried."""
        response = self._http.get("/readyz")
        document = response.json()
        return document if response.status_code == 200 else {"status": "unavailable", **document}

    # -- transport ---------------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return self._request(method, path, **options).json()

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send, with retries on lost connections and on statuses that say 'later'. Every call here may be repeated:
        reads, actions that only state what is wanted, and submissions with their key."""
        failure: Exception | None = None
        for attempt in range(self._retries + 1):
            pause_s = self._backoff_s * 2**attempt * random.uniform(0.5, 1.0)
            try:
                response = self._http.request(method, path, **options)
            except httpx.TransportError as error:
                failure = error
            else:
                if response.status_code not in RETRY_STATUSES or attempt == self._retries:
                    _raise_for_problem(response)
                    return response
                failure = None
                pause_s = _retry_after_s(response) or pause_s
            if attempt < self._retries:
                time.sleep(min(pause_s, 30.0))
        raise _unreachable(failure)

    def _stream_once(self, job: str, after: int) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        timeout = httpx.Timeout(10.0, read=60.0)
        with self._http.stream("GET", f"/v1/jobs/{job}/events/stream", headers=headers, timeout=timeout) as response:
            if response.status_code in RETRY_STATUSES:
                raise UnreachableError({"code": "unreachable", "status": response.status_code, "detail": f"the service answered {response.status_code}"})
            _raise_for_problem(response)
            yield from parse_events(response.iter_lines())


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events (the parts of the format that Holdfast sends: id, event, data, comments)."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                yield Event(seq=int(fields.get("id", 0)), type=fields.get("event", "message"), data=json.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and "data" in fields else value


def _body(spec: Mapping[str, Any]) -> bytes:
    """As JSON; dates that a YAML reader made become text, and a NaN is sent for the service to refuse with a reason."""
    return json.dumps(with_absolute_paths(spec)).encode("utf-8")


def _study_body(study: Mapping[str, Any], records: Sequence[Mapping[str, Any]], folders: Sequence[Path] | None) -> bytes:
    beside = {"records": list(records), "folders": [str(folder.absolute()) for folder in (folders if folders is not None else [Path.cwd()])]}
    return json.dumps({**study, **beside}, default=str).encode("utf-8")


def _retry_after_s(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _unreachable(error: Exception | None) -> ApiError:
    if isinstance(error, ApiError):
        return error
    return UnreachableError({"code": "unreachable", "status": 0, "title": "The service does not answer", "detail": f"the service does not answer: {error}"})


def _raise_for_problem(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    response.read()
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict) or "code" not in document:
        document = {"status": response.status_code, "code": "http_error", "detail": f"HTTP {response.status_code}: {response.text[:200]}"}
    raise ApiError(document)
