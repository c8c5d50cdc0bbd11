"""What stands before the routes: the key check and the cap on the body. Pure ASGI, so streams pass through untouched.

Invariant: deny by default. A request reaches routing (even the 404 of an unknown path) only with a valid key, except
for the exact paths in ``OPEN_PATHS``; and no more than ``body_cap`` of a body is ever held.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.problems import PROBLEMS, problem_response

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
MAX_BODY_BYTES = 1_000_000
LARGER_BODIES = {"/v1/studies": 64_000_000}
"""Paths whose bodies carry more than a job file: a study may come with the records of its finished members."""
DRAIN_BYTES = 32_000_000
"""How much of a refused body is read and thrown away, so that the client gets to read the answer."""
BODY_DEADLINE_S = 30.0
KEY_CACHE_S = 30.0


class KeyCheck:
    """``store.verify_api_key`` with a short memory of good keys' digests, so that not every call costs a query."""

    def __init__(self, verify: Callable[[str], bool], *, remember_s: float = KEY_CACHE_S, clock: Callable[[], float] = time.monotonic):
        self._verify = verify
        self._remember_s = remember_s
        self._clock = clock
        self._good_until: dict[bytes, float] = {}

    async def __call__(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode("utf-8", "replace")).digest()
        now = self._clock()
        if self._good_until.get(digest, 0.0) > now:
            return True
        if not await run_sync(self._verify, key):
            return False
        self._good_until = {known: until for known, until in self._good_until.items() if until > now}
        self._good_until[digest] = now + self._remember_s
        return True


def bearer_key(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The key of the one Authorization header, or None where there is none, more than one, or another scheme."""
    values = [value.decode("latin-1") for name, value in headers if name.lower() == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, key = values[0].partition(" ")
    key = key.strip()
    return key if scheme.lower() == "bearer" and 0 < len(key) <= 256 else None


class RequireKey:
    """ASGI middleware: 401 without a valid key. Anything that is not HTTP (a websocket) is closed."""

    def __init__(self, app: ASGIApp, *, check: KeyCheck):
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and scope["path"] in OPEN_PATHS):
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        key = bearer_key(scope["headers"])
        if key is not None and await self._check(key):
            await self._app(scope, receive, send)
            return
        detail = "the API key is not valid" if key else PROBLEMS["unauthorized"].meaning
        challenge = 'Bearer realm="holdfast"' + (', error="invalid_token"' if key else "")
        await _refuse(scope, receive, send, "unauthorized", detail, headers={"WWW-Authenticate": challenge})


def body_cap(path: str) -> int:
    """Bytes that the body of a request to this path may have."""
    return LARGER_BODIES.get(path, MAX_BODY_BYTES)


class LimitBody:
    """ASGI middleware: reads the body first, up to the cap and the deadline, then hands it on whole."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cap = body_cap(scope["path"])
        try:
            with anyio.fail_after(BODY_DEADLINE_S):
                body = await _read_body(receive, cap)
        except TimeoutError:
            await _refuse(scope, receive, send, "request_timeout", PROBLEMS["request_timeout"].meaning)
            return
        except _TooLarge:
            await _refuse(scope, receive, send, "body_too_large", f"the body is larger than {cap} bytes")
            return
        except _Gone:
            return
        await self._app(scope, _replay(body, receive), send)


class _TooLarge(Exception):
    pass


class _Gone(Exception):
    pass


async def _read_body(receive: Receive, cap: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while size <= cap + DRAIN_BYTES:
        message = await receive()
        if message["type"] != "http.request":
            raise _Gone
        part = message.get("body", b"")
        size += len(part)
        if size <= cap:
            parts.append(part)
        else:
            parts.clear()
        if not message.get("more_body", False):
            break
    if size > cap:
        raise _TooLarge
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    pending = True

    async def replayed() -> Message:
        nonlocal pending
        if pending:
            pending = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed


async def _refuse(scope: Scope, receive: Receive, send: Send, code: str, detail: str, *, headers: dict[str, str] | None = None) -> None:
    state: dict[str, Any] = scope.get("state", {})
    response = problem_response(code, detail, request_id=state.get("request_id", ""), instance=scope["path"], headers=headers)
    await response(scope, receive, send)
