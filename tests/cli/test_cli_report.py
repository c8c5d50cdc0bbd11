"""holdfast report: of a job under way, what it cost so far; of one that has ended, its report."""

from __future__ import annotations

from types import SimpleNamespace

from api.client import ApiError
from api.commands.report import fetch, report_text
from api.evaluation_matrix import evaluations_view
from services.evaluation.report import build_report, render_text

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


def score(row: int, domain: str, mean: float, *, step: int = 0, at: str = "boundary", cut: float = 0.0, digest: str = "d") -> dict:
    """A row of the store, on 40 problems."""
    scores = [float(index < round(40 * mean)) for index in range(40)]
    place = {"row": row, "stage_index": row - 1 if row else None, "step": step, "domain": domain, "at": at, "created_at": None}
    return place | {"scores": scores, "mean": mean, "num_problems": 40, "truncation_rate": cut, "mean_tokens": 4.0, "problems_digest": digest}


class ServiceInStageTwo:
    """A job in step 20 of its second stage, as the routes show it; events come a page at a time."""

    spec_now = SPEC
    rows = (
        score(0, "add", 0.25, cut=0.01), score(0, "sort", 0.5, cut=0.02), score(1, "add", 0.3, step=20, at="during"),
        score(1, "add", 0.75, cut=0.03), score(1, "sort", 0.375, cut=0.04),
        score(2, "sort", 0.7, step=10, at="during", cut=0.05), score(2, "sort", 0.65, step=20, at="during", cut=0.06),
    )

    def report(self, job: str) -> dict:
        raise ApiError({"code": "not_found", "status": 404, "detail": "no report yet"})

    def spec(self, job: str) -> dict:
        return self.spec_now

    def evaluations(self, job: str) -> dict:
        stages = [SimpleNamespace(index=index, name=stage["name"]) for index, stage in enumerate(self.spec_now["stages"])]
        record = SimpleNamespace(id="job_1", spec=self.spec_now, stages=stages)
        return evaluations_view(record, [SimpleNamespace(**row) for row in self.rows]).model_dump(mode="json")

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
    assert next(line for line in text.splitlines() if line.startswith("sort (step 20)")).split()[3:] == ["-", "0.650", "cut", "6.0%"]
    weights = text[text.index("What each stage cost") :].splitlines()
    assert any(line.startswith("sort (step 20)") and "- / 3" in line for line in weights)
    assert any(line.split()[:5] == ["add", "sort", "other", "-0.125", "0.25"] for line in weights), "change and distance, no answers"
    assert not any(line.split()[:2] == ["sort", "add"] for line in weights), "nothing is known of it yet"
    assert "sort: score_falls at step 15 (over at 18)." in text


def scored(text: str) -> list[list[str]]:
    """The lines of the table of scores."""
    return [line.split() for line in text.split("\n\n")[0].splitlines()[2:]]


def test_a_stage_that_learns_from_data_is_named_so_far_too():
    from_data = {**SPEC, "stages": [{**SPEC["stages"][0], "method": {"recipe": "sft"}}, *SPEC["stages"][1:]]}

    class Service(ServiceInStageTwo):
        spec_now = from_data

    assert "none in the evaluations, which alone were watched, of add" in str(report_text(fetch(Service(), "demo")))


def test_every_score_so_far_has_its_own_truncation_rate_beside_it():
    text = str(report_text(fetch(ServiceInStageTwo(), "demo")))
    assert "share of completions cut at the limit" in text.splitlines()[0]
    assert scored(text)[:2] == [["base", "0.250", "cut", "1.0%", "0.500", "cut", "2.0%"], ["add", "0.750", "cut", "3.0%", "0.375", "cut", "4.0%"]]
    assert not any(line.startswith("Note:") for line in text.splitlines())


THIRD = {"name": "count", "domain": {"kind": "strings", "operation": "reverse"}, "method": {"recipe": "grpo"}, "steps": 40}
BY_ROW = {"add": (0.25, 0.75, 0.5, 0.1), "sort": (0.5, 0.375, 0.875, 0.9), "count": (0.125, 0.25, 0.25, 0.8)}


class ServiceInStageThree(ServiceInStageTwo):
    """Two stages are done."""

    spec_now = SPEC | {"stages": [*SPEC["stages"], THIRD]}
    rows = tuple(score(row, domain, means[row]) for row in range(3) for domain, means in BY_ROW.items())


def blocks_of(rows: tuple[dict, ...]) -> tuple[list[str], list[str]]:
    """Of the text so far, and of the text of the report that the same rows would give."""

    class Service(ServiceInStageThree):
        pass

    Service.rows = rows
    report = build_report({"id": "job_1", "name": "demo", "spec": Service.spec_now}, rows, [])
    return str(report_text(fetch(Service(), "demo"))).split("\n\n"), render_text(report).split("\n\n")


def test_retention_so_far_is_what_the_report_would_say():
    so_far, reported = blocks_of(ServiceInStageThree.rows)
    figures = next(block for block in reported if block.startswith("average score"))
    assert figures in so_far and "change from base, count" in figures
    assert [line.split("  ")[0] for line in figures.splitlines()[:4]] == ["average score", "backward transfer", "forward transfer", "forgetting (biased upward)"]
    assert "backward transfer           -0.250 [" in figures


def test_rows_that_do_not_compare_are_left_out_so_far_as_in_the_report():
    inside = score(3, "count", 0.9, step=20, at="during", digest="other")
    other = tuple(score(2, domain, means[2], digest="other" if domain == "sort" else "d") for domain, means in BY_ROW.items())
    so_far, reported = blocks_of((*ServiceInStageThree.rows[:6], *other, inside))
    assert [line[0] for line in scored(so_far[0])] == ["base", "add"]
    note = next(block for block in reported if block.startswith("Note:"))
    assert "row 2 and later ones are left out" in note and note in so_far
    assert next(block for block in reported if block.startswith("average score")) in so_far
    changes = [line.split()[3:] for line in "\n".join(so_far[1:]).splitlines() if line.startswith("sort (step 20)")]
    assert (changes[0][0], changes[1][:3]) == ("-", ["sort", "own", "-"]), "no gain over a row that is left out"


def test_scores_inside_a_stage_that_do_not_compare_are_left_out_so_far():
    inside = [score(3, "count", mean, step=step, at="during", digest=digest) for step, mean, digest in ((10, 0.55, "d"), (20, 0.95, "other"))]
    so_far, _ = blocks_of((*ServiceInStageThree.rows, *inside))
    assert [" ".join(line[:3]) for line in scored(so_far[0])][3:] == ["count (step 10)"] and "0.950" not in "".join(so_far)
    assert any(block.startswith("Note: scores inside count at steps [20] are left out") for block in so_far)


def test_a_note_says_why_there_is_no_retention():
    short = tuple(row | {"scores": row["scores"][:20], "problems_digest": None} if row["row"] else row for row in ServiceInStageTwo.rows)

    class Service(ServiceInStageTwo):
        rows = short

    text = str(report_text(fetch(Service(), "demo")))
    assert "average score" not in text and "Note: domain add: row 1 has scores of (20,) problems, row 0 of (40,)" in text


def test_a_report_that_is_there_is_what_is_shown():
    class Ended(ServiceInStageTwo):
        def report(self, job: str) -> dict:
            return {"format": 2}

    assert fetch(Ended(), "demo") == {"format": 2}
