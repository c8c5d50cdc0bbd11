"""What an attempt is told about its job."""

from __future__ import annotations

from services.scheduler.attempt_calls import with_resolved_paths


def test_data_files_get_the_path_that_admission_found():
    spec = {
        "stages": [{"domain": {"kind": "dataset", "path": "data/a.jsonl"}}, {"domain": {"kind": "arithmetic", "digits": 2}}],
        "evaluation": {"domains": [{"name": "x", "domain": {"kind": "dataset", "path": "data/b.csv"}}]},
        "model": {"path": "data/a.jsonl"},
    }
    resolved = {"datasets": {"data/a.jsonl": {"path": "/abs/data/a.jsonl"}, "data/b.csv": {"path": "/abs/data/b.csv"}}}
    found = with_resolved_paths(spec, resolved)
    assert found["stages"][0]["domain"]["path"] == "/abs/data/a.jsonl"
    assert found["evaluation"]["domains"][0]["domain"]["path"] == "/abs/data/b.csv"
    assert found["model"]["path"] == "data/a.jsonl"
    assert found["stages"][1] == spec["stages"][1]
