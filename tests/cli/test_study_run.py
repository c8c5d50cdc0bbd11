"""``holdfast study run`` goes on with what is there: an unfinished study of the same file, or the records on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from api.client import ApiError
from api.commands import study_file
from api.commands.console import Exit, Format
from api.commands.study_run import _begin, _follow, _write


class Service:
    """Answers as the client does; remembers what was asked of it."""

    def __init__(self, newest: dict | None = None, looks: list[dict] = ()):
        self.newest, self.looks, self.calls, self.unmatched, self.refusal = newest, list(looks), [], [], None

    def validate_study(self, payload, *, records, folders):
        return {"name": payload["name"], "spec_hash": "h1", "unmatched_records": self.unmatched}

    def studies(self, *, name, limit):
        return {"data": [self.newest] if self.newest else []}

    def submit_study(self, payload, *, records, folders):
        self.calls.append(("submit", len(records)))
        return {"id": "study_new"}

    def resume_study(self, study):
        self.calls.append(("resume", study))
        return {"id": study}

    def pause_study(self, study):
        self.calls.append(("pause", study))
        if self.refusal:
            raise ApiError(self.refusal)

    def study(self, study):
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    def study_records(self, study):
        return [_record(member) for member in self.looks[0]["members"] if member["status"] == "succeeded"]


def _record(member: dict) -> dict:
    return {"format": 1, "study": "s", "arm": member["arm"], "order": member["order"], "seed": 1, "digest": "d", "status": "succeeded", "report": {}}


def _look(*statuses: str, status: str) -> dict:
    members = [
        {"position": i, "arm": f"a{i}", "order": "o", "seed": 1, "status": s, "seconds": 1.0, "steps_done": 0, "steps_total": 2, "message": None}
        for i, s in enumerate(statuses)
    ]
    return {"id": "study_1", "name": "s", "status": status, "members": members, "num_members": len(members), "counts": {}}


@pytest.mark.parametrize(
    ("newest", "calls", "study"),
    [
        (None, [("submit", 2)], "study_new"),
        ({"id": "study_1", "spec_hash": "h1", "status": "paused"}, [("resume", "study_1")], "study_1"),
        ({"id": "study_1", "spec_hash": "h1", "status": "running"}, [], "study_1"),
        ({"id": "study_1", "spec_hash": "h1", "status": "succeeded"}, [("submit", 2)], "study_new"),
        ({"id": "study_1", "spec_hash": "another file", "status": "paused"}, [("submit", 2)], "study_new"),
    ],
)
def test_an_unfinished_study_of_the_same_file_goes_on(newest, calls, study):
    service = Service(newest)
    assert _begin(service, {"name": "s"}, [{}, {}], [])["id"] == study
    assert service.calls == calls


def test_records_are_written_while_it_runs_and_it_stops_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("api.commands.study.POLL_S", 0.0)
    looks = [
        _look("succeeded", "running", "queued", status="running"),
        _look("succeeded", "running", "queued", status="running"),
        _look("succeeded", "paused", "paused", status="paused"),
    ]
    service = Service(looks=looks)
    assert _follow(service, "study_1", tmp_path, Format.JSON, 1e-9) is Exit.PAUSED
    assert service.calls == [("pause", "study_1")], "asked once"
    assert json.loads((tmp_path / "a0" / "o-1.json").read_text())["arm"] == "a0"
    assert not (tmp_path / "a1").exists()


def test_records_that_the_file_has_no_member_for_are_told(capsys):
    service = Service()
    service.unmatched = ["a[/b]/o-1"]
    _begin(service, {"name": "s"}, [{}], [])
    told = " ".join(capsys.readouterr().err.split())
    assert "1 record(s) belong to no member of this file" in told and "a[/b]/o-1" in told


def test_a_study_that_ends_as_the_time_is_over_is_not_paused(tmp_path):
    service = Service(looks=[_look("succeeded", status="succeeded")])
    assert _follow(service, "study_1", tmp_path, Format.JSON, 1e-9) is Exit.OK
    assert service.calls == []


def test_a_pause_that_comes_too_late_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr("api.commands.study.POLL_S", 0.0)
    service = Service(looks=[_look("running", status="running"), _look("running", status="running"), _look("succeeded", status="succeeded")])
    service.refusal = {"status": 409, "code": "illegal_transition"}
    assert _follow(service, "study_1", tmp_path, Format.JSON, 1e-9) is Exit.OK
    assert service.calls == [("pause", "study_1")]


def test_a_record_that_makes_way_is_told(tmp_path, capsys):
    service = Service(looks=[_look("succeeded", status="succeeded")])
    path = tmp_path / "a0" / "o-1.json"
    path.parent.mkdir()
    path.write_text(json.dumps(_record({"arm": "a0", "order": "o", "seed": 1}) | {"digest": "of the file before"}))
    _write(service, "study_1", tmp_path)
    assert json.loads(path.read_text())["digest"] == "d"
    assert "was moved to" in capsys.readouterr().err


def test_the_report_is_of_the_file_with_its_changes(tmp_path):
    """The digests of members follow the changes, so a report of the file alone would leave every record out."""
    smoke = Path(__file__).resolve().parents[2] / "deploy" / "studies" / "smoke.yaml"
    plain, changed = (study_file.report(smoke, [], changes) for changes in ((), ["base.defaults.steps=3"]))
    assert "steps: 10" in plain["study"]["file"] and "steps: 3" in changed["study"]["file"]
