"""holdfast report: of a job under way, what it cost so far; of one that has ended, its report."""

from __future__ import annotations

from api.client import ApiError
from api.commands.report import fetch, report_text

SPEC = {
    "name": "demo",
    "model": {"path": "m"},
    "stages": [
        {"name": "add", "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}, "steps": 60},
        {"name": "sort", "domain": {"kind": "strings"}, "method": {"recipe": "sdpo"}, "steps": 40},
    ],
}


def point(key: str, stage: str | None, step: int, value: float | None) -> dict:
    return {"key": key, "stage": stage, "step": step, "global_step": step, "value": value}


def score(row: int, domain: str, mean: float, *, step: int = 0, at: str = "boundary") -> dict:
    return {"row": row, "stage_index": row - 1 if row else None, "step": step, "domain": domain, "at": at, "mean": mean, "truncation_rate": 0.0}


class ServiceInStageTwo:
    """A job in step 20 of its second stage, as the routes show it; events come a page at a time."""

    def report(self, job: str) -> dict:
        raise ApiError({"code": "not_found", "status": 404, "detail": "no report yet"})

    def spec(self, job: str) -> dict:
        return SPEC

    def evaluations(self, job: str) -> dict:
        data = [score(1, "add", 0.3, step=20, at="during"), score(2, "sort", 0.7, step=10, at="during"), score(2, "sort", 0.65, step=20, at="during")]
        gains = [{"value": 0.5, "low": 0.4, "high": 0.6}]
        matrix = [[0.25, 0.5], [0.75, 0.375]]
        retention = {"stage_gains": gains, "earlier_changes": [None]}
        return {"object": "evaluations", "domains": ["add", "sort"], "rows": ["base", "add"], "score_matrix": matrix, "retention": retention, "data": data}

    def metrics(self, job: str, *, max_points: int) -> dict:
        points = [point("drift/base/relative_l2", "add", 60, 0.02), point("drift/base/relative_l2", "sort", 20, 0.03), point("drift/base/relative_l2", "sort", 10, None)]
        points += [point("responses/sort/kl_policy_base", "sort", 20, 0.5), point("domains/mmd_squared/add/sort", None, 0, 0.25)]
        return {"data": points}

    def events(self, job: str, *, after: int, limit: int) -> dict:
        evidence = {"code": "score_falls", "severity": "critical", "message": "it fell", "evidence": {"level": 2.0}, "stage": "sort"}
        known = [
            {"seq": 1, "type": "stage.status", "stage": "sort", "data": {"status": "running", "step": 0}},
            {"seq": 2, "type": "collapse.warning", "stage": "sort", "data": {**evidence, "raised": True, "step": 15}},
            {"seq": 3, "type": "collapse.cleared", "stage": "sort", "data": {**evidence, "raised": False, "step": 18, "evidence": {"raised_at_step": 15}}},
        ]
        return {"data": known[after : after + 2], "has_more": len(known) > after + 2}


def test_a_job_under_way_shows_scores_drift_and_signs_so_far():
    found = fetch(ServiceInStageTwo(), "demo")
    assert [item["step"] for item in found["drift"]["parameters"]] == [60, 20] and found["drift"]["responses"][0]["role"] == "own"
    assert found["drift"]["domain_distances"]["mmd_squared"] == {"add": {"sort": 0.25}}
    text = str(report_text(found))
    assert "has not ended" in text
    assert next(line for line in text.splitlines() if line.startswith("sort (step 20)")).split()[3:] == ["-", "0.650"]
    weights = text[text.index("What each stage cost") :].splitlines()
    assert any(line.startswith("sort (step 20)") and "- / 3" in line for line in weights)
    assert any(line.split()[:5] == ["add", "sort", "other", "-0.125", "0.25"] for line in weights), "change and distance, no answers"
    assert not any(line.split()[:2] == ["sort", "add"] for line in weights), "nothing is known of it yet"
    assert "sort: score_falls at step 15 (over at 18)." in text


def test_a_report_that_is_there_is_what_is_shown():
    class Ended(ServiceInStageTwo):
        def report(self, job: str) -> dict:
            return {"format": 2}

    assert fetch(Ended(), "demo") == {"format": 2}
