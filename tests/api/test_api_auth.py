"""Deny by default: every route that the application has, enumerated, refuses a call without a key."""

from __future__ import annotations

import re

import pytest

from api.intake import OPEN_PATHS, KeyCheck, bearer_key


def _calls(app):
    for route in app.routes:
        for method in sorted(route.methods or ()):
            yield method, re.sub(r"\{[^}]*\}", "x", route.path)


def test_every_route_without_a_key_is_401(app, anonymous):
    calls = list(_calls(app))
    paths = {path for _, path in calls}
    assert {"/openapi.json", "/docs", "/metrics", "/version", "/v1/jobs", "/v1/jobs/x/events/stream"} <= paths
    assert len(calls) >= 27
    for method, path in calls:
        answer = anonymous.request(method, path)
        if path in OPEN_PATHS:
            assert answer.status_code == 200, (method, path)
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"].startswith("Bearer")
        if method != "HEAD":
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "unauthorized"


def test_only_health_and_readiness_are_open():
    assert {"/healthz", "/readyz"} == OPEN_PATHS


@pytest.mark.parametrize("path", ["/nothing", "/healthz/", "//healthz", "/healthz/../metrics", "/readyz/x", "/-/routes"])
def test_a_path_that_does_not_exist_is_401_too(anonymous, path):
    assert anonymous.get(path).status_code == 401


@pytest.mark.parametrize(
    "value",
    ["Bearer", "Bearer ", "Bearer wrong", "Basic aGY6aGY=", "hf_abc", "Bearer " + "a" * 5000, "Bearer \u00e9"],
)
def test_a_wrong_key_is_401(anonymous, value):
    assert anonymous.get("/version", headers={"Authorization": value.encode("latin-1")}).status_code == 401


def test_the_key_opens_and_the_scheme_ignores_case(anonymous, key):
    assert key.startswith("hf_")
    assert anonymous.get("/version", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert anonymous.get("/version", headers={"Authorization": f"bearer {key}"}).status_code == 200
    assert anonymous.get("/version", headers={"Authorization": f"Bearer {key}x"}).status_code == 401


def test_two_authorization_headers_are_refused():
    assert bearer_key([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")]) is None
    assert bearer_key([(b"Authorization", b"Bearer a")]) == "a"


async def _check_twice(check):
    return await check("good"), await check("good"), await check("bad"), await check("bad")


def test_good_keys_are_remembered_for_a_while_and_bad_ones_never():
    import anyio

    asked: list[str] = []
    now = [0.0]

    def verify(text: str) -> bool:
        asked.append(text)
        return text == "good"

    check = KeyCheck(verify, remember_s=30.0, clock=lambda: now[0])
    assert anyio.run(_check_twice, check) == (True, True, False, False)
    assert asked == ["good", "bad", "bad"]
    now[0] = 31.0
    assert anyio.run(_check_twice, check)[0] is True
    assert asked.count("good") == 2
