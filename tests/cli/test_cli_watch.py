"""watch, submit and the rest against a service that is played: outcomes, Ctrl-C, events once and in order."""

from __future__ import annotations

import json

import pytest

from api.client import ApiError, HoldfastClient
from api.commands import watch
from api.commands.console import Exit, Format


def job(status: str, step: int = 0, message: str | None = None) -> dict:
    stage = {"index": 0, "name": "arithmetic", "status": "running", "step": step, "total_steps": 3, "message": "loss -0.0125, score 0.5000"}
    progress = {"stages_done": 0, "stages_total": 1, "steps_done": step, "steps_total": 3}
    return {"id": "job_1", "name": "demo", "status": status, "message": message, "reason": None, "stages": [stage], "progress": progress, "links": {}}


def event(seq: int, kind: str = "stage.status", message: str = "") -> dict:
    return {"seq": seq, "type": kind, "level": "info", "message": message or f"event {seq}", "created_at": "2026-01-01T10:00:00Z"}


class PlayedService:
    """Answers ``get`` with one state after another; an event more appears with every one."""

    def __init__(self, states: list, *, pages: int = 1):
        self.states = states
        self.calls = -1
        self.per_state = pages

    def get(self, name: str) -> dict:
        self.calls += 1
        state = self.states[min(max(self.calls - 1, 0), len(self.states) - 1)]
        if isinstance(state, BaseException):
            raise state
        return state

    def events(self, name: str, *, after: int = 0, limit: int = 100) -> dict:
        known = list(range(1, self.calls * self.per_state + 1))
        found = [number for number in known if number > after]
        return {"data": [event(number) for number in found[:limit]], "has_more": len(found) > limit}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(watch, "POLL_S", 0.0)
    monkeypatch.setattr(watch, "PLAIN_EVERY_S", 0.0)


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 3), ("paused", 5)])
def test_the_exit_code_is_the_outcome(status, code, capsys):
    assert int(watch.follow(PlayedService([job("running", 1), job(status, 3, "because")]), "demo", Format.TEXT)) == code
    text = capsys.readouterr().out
    assert f"demo (job_1) {status}" in text
    assert ("because" in text) == (status != "succeeded")


def test_every_event_is_told_once_and_in_order(capsys):
    service = PlayedService([job("running", 1), job("running", 2), job("succeeded", 3)], pages=120)
    watch.follow(service, "demo", Format.JSON)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"]["seq"] for line in lines if "event" in line] == list(range(1, 361))
    assert [line["progress"]["steps_done"] for line in lines if "progress" in line] == [1, 2, 3]
    assert lines[-1]["job"]["status"] == "succeeded"


def test_plain_lines_show_step_reward_and_loss(capsys):
    watch.follow(PlayedService([job("running", 2), job("succeeded", 3)]), "demo", Format.TEXT)
    assert "arithmetic 2/3  loss -0.0125, score 0.5000" in capsys.readouterr().out
    assert watch.numbers(job("running")["stages"][0]) == {"loss": -0.0125, "score": 0.5}


def test_the_live_view_draws_a_bar_for_every_stage(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert watch.follow(PlayedService([job("running", 2), job("succeeded", 3)]), "demo", Format.TEXT) is Exit.OK
    text = capsys.readouterr().out
    assert "arithmetic" in text and "3/3" in text and "reward 0.500" in text


def test_ctrl_c_detaches_and_asks_nothing_of_the_job(capsys):
    service = PlayedService([job("running", 1), KeyboardInterrupt()])
    assert watch.follow(service, "demo", Format.TEXT) is Exit.DETACHED
    assert "the job goes on" in capsys.readouterr().err
    assert not hasattr(service, "cancel")  # it could not have called what is not there


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        ({"status": 409, "code": "illegal_transition", "detail": "job job_1 is already succeeded: it cannot cancel"}, Exit.REFUSED),
        ({"status": 404, "code": "not_found", "detail": "no job 'demo'"}, Exit.REFUSED),
        ({"status": 0, "code": "unreachable", "detail": "the service does not answer"}, Exit.UNREACHABLE),
        ({"status": 503, "code": "service_unavailable", "detail": "later"}, Exit.UNREACHABLE),
        ({"status": 500, "code": "internal_error", "detail": "broken"}, Exit.FAILED),
    ],
)
def test_a_refusal_is_told_and_has_its_exit_code(holdfast, settings, monkeypatch, problem, code):
    settings.home.mkdir()
    settings.api_key_file.write_text("hf_0_x")

    def refuse(self, *arguments, **options):
        raise ApiError(problem)

    monkeypatch.setattr(HoldfastClient, "cancel", refuse)
    result = holdfast("cancel", "demo")
    assert result.exit_code == code
    assert problem["detail"] in result.output
    found = json.loads(holdfast("cancel", "demo", "-o", "json").stdout)["error"]
    assert (found["reason"], found["exit_code"]) == (problem["code"], int(code))
