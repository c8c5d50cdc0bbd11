"""Signs in evaluations: by hand, and over every run of the study in the tree, none of which settled a threshold."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.evaluation.collapse import evaluation_warnings

RECORDS = Path(__file__).parents[2] / "deploy/studies/denser-is-not-better/records"
PROBLEMS = 256


@dataclass(frozen=True)
class Row:
    row: int
    at: str
    step: int
    domain: str
    mean: float
    num_problems: int = PROBLEMS
    problems_digest: str | None = "p"


def told(rows, *, stage_index=0, step=10, at="during"):
    return [(item.code, item.raised, sorted(item.evidence["domains"])) for item in evaluation_warnings(rows, stage="s", stage_index=stage_index, step=step, at=at)]


BASE = [Row(0, "boundary", 0, "a", 0.6), Row(0, "boundary", 0, "b", 0.5), Row(0, "boundary", 0, "c", 0.02)]


def test_a_domain_is_lost_once_and_found_again_once():
    rows = [*BASE, Row(1, "boundary", 50, "a", 0.9), Row(1, "boundary", 50, "b", 0.2), Row(1, "boundary", 50, "c", 0.0)]
    # b: 0.2 < 0.25, and 0.3 is 7.5 errors of sqrt(0.5 * 0.5 / 256 + 0.2 * 0.8 / 256) = 0.040; c: 0.02 is 2.2 errors of 0.0092
    assert told(rows, step=50, at="boundary") == [("domain_lost", True, ["b"])]
    rows += [Row(2, "boundary", 50, "a", 0.8), Row(2, "boundary", 50, "b", 0.22), Row(2, "boundary", 50, "c", 0.0)]
    assert told(rows, stage_index=1, step=50, at="boundary") == []
    rows += [Row(3, "during", 10, "b", 0.7)]
    (warning,) = evaluation_warnings(rows, stage="third", stage_index=2, step=10, at="during")
    assert (warning.code, warning.raised, warning.stage, warning.severity) == ("domain_lost", False, "third", "warning")
    assert warning.evidence["domains"] == {"b": {"score_now": 0.7, "score_reference": 0.5, "score_best": 0.7, "num_problems": PROBLEMS}}


def test_an_own_domain_falls_below_its_best_in_the_stage():
    rows = [*BASE, Row(1, "during", 10, "a", 0.8), Row(1, "during", 20, "a", 0.71)]
    # 0.09 is 2.4 errors of sqrt(0.8 * 0.2 / 256 + 0.71 * 0.29 / 256) = 0.0378; 0.12 is 3.1 of 0.0383
    assert told(rows, step=20) == []
    rows += [Row(1, "during", 30, "a", 0.68)]
    assert told(rows, step=30) == [("evaluation_falls", True, ["a"])]
    rows += [Row(1, "during", 40, "a", 0.66)]
    assert told(rows, step=40) == []
    rows += [Row(1, "boundary", 50, "a", 0.79), Row(1, "boundary", 50, "b", 0.26)]
    assert told(rows, step=50, at="boundary") == [("evaluation_falls", False, ["a"])]


def test_a_policy_that_is_dead_in_a_stages_first_steps_is_told_at_its_first_evaluation():
    rows = [*BASE, Row(1, "boundary", 50, "a", 0.14), Row(2, "during", 10, "a", 0.004)]
    assert told(rows, stage_index=1) == [("evaluation_falls", True, ["a"])]


def test_another_domain_that_falls_in_a_stage_is_forgetting_and_no_fall_of_the_stage():
    rows = [*BASE, Row(1, "during", 10, "a", 0.8), Row(1, "boundary", 50, "a", 0.9), Row(1, "boundary", 50, "b", 0.3)]
    assert told(rows, step=50, at="boundary") == []  # b lost 0.2, but not half


def test_rows_on_other_problems_are_not_looked_at():
    rows = [*BASE, Row(1, "boundary", 50, "b", 0.0, problems_digest="q")]
    assert told(rows, step=50, at="boundary") == []


def test_two_domains_of_one_measurement_are_one_warning():
    rows = [*BASE, Row(1, "boundary", 50, "a", 0.1), Row(1, "boundary", 50, "b", 0.1)]
    (warning,) = evaluation_warnings(rows, stage="s", stage_index=0, step=50, at="boundary")
    assert warning.message == "scores fell below half of the base model's: a 0.100 (the base 0.600), b 0.100 (the base 0.500)"
    json.dumps(warning.to_json(), allow_nan=False)


def replayed(record: dict) -> list:
    """What the signs would have said of a finished run, from its report."""
    report = record["report"]
    matrix, rows, found = report["score_matrix"], [], []
    problems = matrix["num_problems"]
    rows += [Row(0, "boundary", 0, name, mean, problems[name]) for name, mean in zip(matrix["domains"], matrix["means"][0], strict=True)]
    for index, stage in enumerate(report["stages"]):
        inside = [item for item in report["during"] if item["stage_index"] == index]
        for step in sorted({item["step"] for item in inside}):
            rows += [Row(index + 1, "during", step, item["domain"], item["mean"], problems[item["domain"]]) for item in inside if item["step"] == step]
            found += evaluation_warnings(rows, stage=stage["name"], stage_index=index, step=step, at="during")
        end = stage["steps"]
        rows += [Row(index + 1, "boundary", end, name, mean, problems[name]) for name, mean in zip(matrix["domains"], matrix["means"][index + 1], strict=True)]
        found += evaluation_warnings(rows, stage=stage["name"], stage_index=index, step=end, at="boundary")
    return found


@pytest.fixture(scope="module")
def study() -> dict[str, list]:
    """``arm/order-seed`` -> warnings, of every record."""
    return {f"{path.parent.name}/{path.stem}": replayed(json.loads(path.read_text())) for path in sorted(RECORDS.glob("*/*.json"))}


def test_a_fall_is_told_where_a_run_of_the_study_collapsed_and_nowhere_else(study):
    falls = Counter(name.rsplit("-", 1)[0] for name, warnings in study.items() for item in warnings if item.code == "evaluation_falls" and item.raised)
    assert len(study) == NUM_RECORDS and falls == FALLS


def test_the_ruined_second_order_is_told(study):
    """EMA 5 % ends at 0.35, 0.01, 0.00, 0.78; 0.07, 0.00, 0.00, 0.41; 0, 0, 0, 0: the step-by-step watch said next to nothing of it."""
    lost = {seed: sorted(name for item in study[f"sdpo-ema5/second-{seed}"] if (item.stage, item.code, item.raised) == ("sort", "domain_lost", True) for name in item.evidence["domains"]) for seed in (1, 2, 3)}
    assert lost == {1: ["reverse", "rotate"], 2: ["reverse", "rotate", "swap"], 3: ["reverse", "rotate", "swap", "uppercase"]}


NUM_RECORDS = 131
FALLS = {"sdpo-ema5/first": 3, "sdpo-ema5/second": 4, "sdpo-ema5/long": 1, "pg-replayed/recorded": 4}
"""Warnings; the other arms and orders have none."""
