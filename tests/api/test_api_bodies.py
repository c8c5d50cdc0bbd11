"""Malformed, huge, hostile bodies: always a problem document with a 4xx, never a 5xx."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.documents import MAX_DEPTH, read_document
from api.problems import ProblemError

JSON, YAML = "application/json", "application/yaml"

BODIES = {
    "ten megabytes": (b'{"name": "' + b"x" * 10_000_000 + b'"}', JSON, 413, "body_too_large"),
    "a hundred thousand brackets": (b"[" * 100_000, JSON, 400, "malformed_body"),
    "a hundred thousand brackets in YAML": (b"[" * 100_000, YAML, 400, "malformed_body"),
    "half a million empty objects": (b"[" + b"{}," * 300_000 + b"{}]", JSON, 400, "malformed_body"),
    "NaN": (b'{"seed": NaN}', JSON, 400, "malformed_body"),
    "minus infinity": (b'{"seed": -Infinity}', JSON, 400, "malformed_body"),
    "a number that overflows": (b'{"seed": 1e999}', JSON, 400, "malformed_body"),
    "NaN in YAML": (b"seed: .nan", YAML, 400, "malformed_body"),
    "five thousand digits": (b'{"seed": ' + b"1" * 5000 + b"}", JSON, 400, "malformed_body"),
    "an integer of 70 bits": (b'{"seed": 1180591620717411303424}', JSON, 400, "malformed_body"),
    "a key twice": (b'{"name": "a", "name": "b"}', JSON, 400, "malformed_body"),
    "a key twice in YAML": (b"name: a\nname: b\n", YAML, 400, "malformed_body"),
    "a YAML alias": (b"a: &x [1, 2]\nb: *x\n", YAML, 400, "malformed_body"),
    "a YAML object": (b"a: !!python/object/apply:os.system [id]\n", YAML, 400, "malformed_body"),
    "YAML bytes": (b"a: !!binary aGVsbG8=\n", YAML, 400, "malformed_body"),
    "two YAML documents": (b"a: 1\n---\na: 2\n", YAML, 400, "malformed_body"),
    "half a surrogate pair": (b'{"name": "\\ud800"}', JSON, 400, "malformed_body"),
    "a NUL character": (b'{"name": "a\\u0000b"}', JSON, 400, "malformed_body"),
    "not UTF-8": (b'{"name": "\xff"}', JSON, 400, "malformed_body"),
    "nothing": (b"", JSON, 400, "malformed_body"),
    "another media type": (b"{}", "text/plain", 415, "unsupported_media_type"),
    "a form": (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
    "no media type": (b"{}", "", 415, "unsupported_media_type"),
    "a list": (b"[]", JSON, 422, "invalid_spec"),
    "null": (b"null", JSON, 422, "invalid_spec"),
    "a string": (b'"job"', JSON, 422, "invalid_spec"),
    "an empty object": (b"{}", JSON, 422, "invalid_spec"),
    "stages that are no list": (b'{"name": "a", "model": {"path": "x"}, "stages": {"0": 1}}', JSON, 422, "invalid_spec"),
    "stages of null": (b'{"name": "a", "model": null, "stages": [null, 1, "x", []]}', JSON, 422, "invalid_spec"),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_body_is_a_problem(http, store, name):
    body, media_type, status, code = BODIES[name]
    answer = http.post("/v1/jobs", content=body, headers={"Content-Type": media_type})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert store.list_jobs(limit=1)[0] == []


def test_a_body_in_chunks_without_a_length_is_capped(http):
    answer = http.post("/v1/jobs", content=(b"x" * 100_000 for _ in range(20)), headers={"Content-Type": JSON})
    assert answer.status_code == 413


def test_nesting_is_allowed_up_to_the_bound():
    assert read_document(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, JSON)
    with pytest.raises(ProblemError, match="nested deeper"):
        read_document(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), JSON)


def test_yaml_and_json_read_alike():
    text = b"name: demo\nlr: 3.0e-5\ndate: 2026-01-01\nlength: [4, 6]\n'on': true\n"
    assert read_document(text, "application/yaml; charset=utf-8") == {"name": "demo", "lr": 3e-5, "date": "2026-01-01", "length": [4, 6], "on": True}


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([JSON, YAML]))
def test_any_bytes_give_a_document_or_a_problem(body, media_type):
    try:
        read_document(body, media_type)
    except ProblemError as error:
        assert error.code == "malformed_body"


@pytest.mark.parametrize("body", [b'{"mode": "soon"}', b'{"mode": "now", "extra": 1}', b"[1]", b"{", b'{"mode": NaN}'])
def test_a_bad_body_of_an_action_is_a_problem(http, spec, body):
    job = http.post("/v1/jobs", json=spec).json()
    answer = http.post(f"/v1/jobs/{job['id']}/cancel", content=body, headers={"Content-Type": JSON})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"
    assert http.get(f"/v1/jobs/{job['id']}").json()["status"] == "queued"
