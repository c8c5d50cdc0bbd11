"""report.json and its text for a job of two stages."""

from __future__ import annotations

import json

import numpy as np
import pytest

from services.evaluation.report import build_report, render_text

SPEC = {
    "name": "demo",
    "model": {"path": "models/base"},
    "seed": 7,
    "stages": [
        {"name": "add", "domain": {"kind": "arithmetic", "digits": 2}, "method": {"recipe": "grpo"}, "steps": 2},
        {"name": "sort", "domain": {"kind": "strings", "operation": "sort"}, "method": {"recipe": "sdpo"}, "steps": 2},
    ],
}
JOB = {"id": "job_1", "name": "demo", "spec": SPEC, "spec_hash": "abc"}
MEANS = {0: (0.25, 0.5), 1: (0.75, 0.25), 2: (0.5, 1.0)}


def _evaluations(rows=(0, 1, 2)):
    found = []
    for row in rows:
        for domain, mean in zip(("add", "sort"), MEANS[row], strict=True):
            scores = [float(value) for value in np.arange(8) < 8 * mean]
            found.append({"row": row, "domain": domain, "at": "boundary", "scores": scores, "mean": mean, "truncation_rate": 0.125, "mean_tokens": 9.0})
        if row:
            inside = {"at": "during", "stage_index": row - 1, "step": 1, "scores": [0.0] * 8, "mean": 0.0, "truncation_rate": 0.0, "mean_tokens": 1.0}
            found.append({"row": row, "domain": "add", **inside})
    return found


CHECKPOINTS = [
    {"kind": "resume", "stage_index": 0, "path": "/runs/job_1/checkpoints/c0"},
    {"kind": "stage", "stage_index": 0, "path": "/runs/job_1/checkpoints/c1"},
    {"kind": "stage", "stage_index": 1, "path": "/runs/job_1/checkpoints/c2"},
]


def _metrics():
    points = []
    for step, stage in ((1, "add"), (2, "add"), (1, "sort"), (2, "sort")):
        values = {
            "parity/max_abs_nats": 1e-6 * step,
            "seconds/rollout": 1.0 * step,
            "seconds/step": 2.0,
            "throughput/completion_tokens_per_s": 5000.0 + step,
            "rollout/score_mean": 0.1 * step,
            "loss/total": None,
        }
        points += [{"key": key, "value": value, "step": step, "stage": stage} for key, value in values.items()]
    return points


def test_the_report_of_a_finished_job():
    report = build_report(JOB, _evaluations(), CHECKPOINTS, _metrics(), mlflow={None: "http://m/#1", "add": "http://m/#2"})
    matrix = report["score_matrix"]
    assert matrix["rows"] == ["base", "add", "sort"] and matrix["domains"] == ["add", "sort"]
    assert matrix["means"] == [[0.25, 0.5], [0.75, 0.25], [0.5, 1.0]]
    assert matrix["low"][0][0] < 0.25 < matrix["high"][0][0] and matrix["low"][2][1] == matrix["high"][2][1] == 1.0
    assert matrix["truncation_rate"][1] == [0.125, 0.125] and matrix["num_problems"] == {"add": 8, "sort": 8}
    assert report["retention"]["backward_transfer"]["value"] == pytest.approx(-0.25)
    assert report["retention"]["forward_transfer"]["value"] == pytest.approx(-0.25)
    assert [stage["gain"]["value"] for stage in report["stages"]] == pytest.approx([0.5, 0.75])
    assert [stage["teacher"] for stage in report["stages"]] == [None, "ema"]
    assert report["models"] == {"add": "/runs/job_1/stages/0-add/policy", "sort": "/runs/job_1/stages/1-sort/policy"}
    assert report["parity"] == {"max_abs_nats": 2e-6, "num_probes": 4}
    assert report["seconds_per_step"] == {"rollout": 1.5, "step": 2.0} and report["steps"] == 4
    assert report["completion_tokens_per_s"] == 5001.5
    assert report["stages"][0]["mlflow"] == "http://m/#2" and report["stages"][1]["mlflow"] is None
    assert report["mlflow"] == {"job": "http://m/#1", "stages": {"add": "http://m/#2"}}
    assert (report["stages"][1]["first_reward"], report["stages"][1]["last_reward"]) == (0.1, 0.2)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_newest_measurement_of_a_cell_counts():
    again = {**_evaluations()[0], "scores": [1.0] * 8, "mean": 1.0}
    assert build_report(JOB, [*_evaluations(), again], CHECKPOINTS)["score_matrix"]["means"][0] == [1.0, 0.5]


def test_a_job_under_way_has_the_rows_that_are_complete():
    partial = [item for item in _evaluations() if not (item["row"] == 2 and item["domain"] == "sort")]
    report = build_report(JOB, partial, CHECKPOINTS[:2], _metrics())
    assert report["score_matrix"]["rows"] == ["base", "add"]
    assert report["retention"]["backward_transfer"] is None
    assert [stage["gain"] is None for stage in report["stages"]] == [False, True]
    nothing = build_report(JOB, [], [])
    assert nothing["score_matrix"]["means"] == [] and nothing["retention"] is None and nothing["parity"]["max_abs_nats"] is None
    assert "No evaluation" in render_text(nothing)
    json.dumps(nothing, allow_nan=False)


def test_the_text_holds_the_figures_that_the_report_holds():
    report = build_report(JOB, _evaluations(), CHECKPOINTS, _metrics(), mlflow={None: "http://m/#1"})
    text = render_text(report)
    assert text.isascii()
    matrix_line = next(line for line in text.splitlines() if line.startswith("add ") and "0.750 [" in line)
    assert "0.250 [" in matrix_line
    assert "+0.750 [" in next(line for line in text.splitlines() if line.startswith("sort") and "sdpo" in line)
    assert "-0.250 [" in next(line for line in text.splitlines() if line.startswith("backward transfer"))
    assert "2.00e-06 nats in 4 probes" in text and "http://m/#1" in text and "/runs/job_1/stages/1-sort/policy" in text


def _sampled(digests=("d", "d", "d")):
    found = [item for item in _evaluations() if item["at"] == "boundary"]
    for item in found:
        item |= {"problems_digest": digests[item["row"]], "samples_per_problem": 4, "passed": [int(4 * score) for score in item["scores"]]}
    return found


def test_the_report_compares_rows_and_shows_pass_at_k():
    job = {**JOB, "spec": {**SPEC, "evaluation": {"samples_per_problem": 4, "pass_at": [1, 4]}}}
    report = build_report(job, _sampled(), CHECKPOINTS)
    assert report["score_matrix"]["notes"] == [] and report["score_matrix"]["problems_digest"] == [["d", "d"]] * 3
    assert report["retention"]["last"]["sort"]["value"] == 1.0
    assert report["comparisons"]["relative"]["percent_of_base"][2]["add"]["value"] == pytest.approx(100.0)
    assert report["comparisons"]["relative"]["forgetting"][1]["sort"]["value"] == pytest.approx(50.0)
    assert report["comparisons"]["out_of_domain"] is None
    tests = {(*test["rows"], test["domain"]): test for test in report["comparisons"]["paired_tests"]}
    assert tests[0, 2, "sort"]["num_gained"] == 4 and tests[0, 2, "sort"]["p_value"] == pytest.approx(0.125)
    assert report["pass_at"]["k"] == [1, 4] and report["pass_at"]["estimates"][0][2][0]["value"] == 0.5
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    text = render_text(report)
    assert text.isascii() and "+100.0% [" in text and "pass@k" in text and "cut 12.5%" in text and "mcnemar_exact" in text


def test_a_row_of_other_problems_is_left_out_and_the_text_says_so():
    report = build_report(JOB, _sampled(("d", "d", "e")), CHECKPOINTS)
    assert report["score_matrix"]["rows"] == ["base", "add"] and len(report["comparisons"]["relative"]["gain"]) == 2
    assert "row 2 and later ones are left out" in render_text(report)
    assert report["stages"][1]["gain"] is None


def test_scores_inside_a_stage_are_left_out_where_they_do_not_compare():
    rows = _sampled()
    inside = [{**next(item for item in rows if item["row"] == 1), "at": "during", "stage_index": 0, "step": step, "problems_digest": digest} for step, digest in ((1, "d"), (2, "e"), (3, None))]
    report = build_report(JOB, rows + inside, [])
    assert [item["step"] for item in report["during"]] == [1, 3]
    (note,) = report["score_matrix"]["notes"]
    assert note.startswith("scores inside add at steps [2] are left out: evaluations_not_comparable")
    cut = build_report(JOB, [*_sampled(("d", "d", "e")), {**inside[0], "row": 2, "stage_index": 1}], [])
    assert cut["during"] == [] and len(cut["score_matrix"]["notes"]) == 1


def test_rows_of_before_digests_are_taken_with_a_note():
    report = build_report(JOB, _evaluations(), CHECKPOINTS)
    assert len(report["score_matrix"]["rows"]) == 3 and "rows [0, 1, 2] have no digest" in report["score_matrix"]["notes"][0]


def test_a_report_of_before_these_sections_is_still_shown():
    report = build_report(JOB, _evaluations(), CHECKPOINTS)
    for name in ("comparisons", "pass_at", "during", "drift", "collapse"):
        report.pop(name)
    report["score_matrix"].pop("notes")
    for stage in report["stages"]:
        stage.pop("earlier_change")
    assert "0.750 [" in render_text(report)


def test_a_stage_that_replays_has_the_domains_that_are_its_own():
    """Figures of a job with replay mean the same as those of one without: the replayed domain is an earlier one."""
    replaying = {**SPEC["stages"][1], "replay": {"share": 0.5}}
    report = build_report({**JOB, "spec": {**SPEC, "stages": [SPEC["stages"][0], replaying]}}, _evaluations(), CHECKPOINTS)
    stage = report["stages"][1]
    assert (stage["domains"], stage["replayed"]) == (["sort"], ["add"])
    assert stage["gain"]["value"] == pytest.approx(0.75) and stage["earlier_change"]["value"] == pytest.approx(-0.25)
    assert report["stages"][0]["earlier_change"] is None and report["retention"]["backward_transfer"]["value"] == pytest.approx(-0.25)
