"""Signs in evaluations: by hand, and over every run of the study in the tree, none of which settled a threshold."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from services.evaluation.collapse import active_signs, evaluation_warnings

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


class Job:
    """What a job was told so far; ``a`` is every stage's own domain."""

    def __init__(self, *rows: Row):
        self.rows, self.warnings = list(rows), []

    def measured(self, *rows: Row, stage: str = "s", own=("a",), unverified=None) -> list:
        """The new warnings after these rows of one measurement."""
        self.rows += rows
        active = active_signs([item.to_json() for item in self.warnings], stage)
        first = rows[0]
        new = evaluation_warnings(self.rows, stage=stage, stage_index=first.row - 1, step=first.step, at=first.at, own=own, active=active, unverified=unverified)
        self.warnings += new
        return [(item.code, item.raised, sorted(item.evidence["domains"])) for item in new]


BASE = [Row(0, "boundary", 0, "a", 0.6), Row(0, "boundary", 0, "b", 0.5), Row(0, "boundary", 0, "c", 0.02)]


def during(step, mean, *, row=1, domain="a", **more):
    return Row(row, "during", step, domain, mean, **more)


def end(row, **means):
    return [Row(row, "boundary", 50, name, mean) for name, mean in means.items()]


def test_a_domain_is_lost_once_and_found_again_once():
    job = Job(*BASE)
    # b: 0.2 < 0.25, and 0.3 is 7.5 errors of sqrt(0.5 * 0.5 / 256 + 0.2 * 0.8 / 256) = 0.040; c: 0.02 is 2.1 errors of 0.0091
    assert job.measured(*end(1, a=0.9, b=0.2, c=0.0)) == [("domain_lost", True, ["b"])]
    assert job.measured(*end(2, a=0.88, b=0.22, c=0.0)) == []
    assert job.measured(*end(3, a=0.88, b=0.3, c=0.0)) == [], "0.25 / 0.3 is above 0.8: not over yet"
    assert job.measured(during(10, 0.7, row=4, domain="b"), stage="fourth", own=("b",)) == [("domain_lost", False, ["b"])]
    last = job.warnings[-1]
    assert (last.stage, last.severity, last.evidence["domains"]) == ("fourth", "warning", {"b": {"score_now": 0.7, "score_reference": 0.5, "score_best": 0.7, "num_problems": PROBLEMS}})


def test_an_own_domain_falls_below_its_best_in_the_stage():
    job = Job(*BASE)
    job.measured(during(10, 0.8))
    # 0.09 is 2.4 errors of sqrt(0.8 * 0.2 / 256 + 0.71 * 0.29 / 256) = 0.0378; 0.12 is 3.1 of 0.0383
    assert job.measured(during(20, 0.71)) == []
    assert job.measured(during(30, 0.68)) == [("evaluation_falls", True, ["a"])]
    assert job.measured(during(40, 0.66)) == []
    assert job.measured(*end(1, a=0.79, b=0.26, c=0.02)) == [("evaluation_falls", False, ["a"])]


def test_a_fall_over_a_stage_that_was_not_evaluated_inside_is_told_and_no_other_domains():
    job = Job(*BASE)
    assert job.measured(*end(1, a=0.4, b=0.3, c=0.02)) == [("evaluation_falls", True, ["a"])]  # b: forgotten, and no half of it
    assert job.measured(*end(2, a=0.4, b=0.3, c=0.02), stage="t") == [], "a new stage begins where the last one ended"


def test_a_policy_that_is_dead_in_a_stages_first_steps_is_told_at_its_first_evaluation():
    job = Job(*BASE)
    job.measured(*end(1, a=0.14, b=0.5, c=0.02))
    assert job.measured(during(10, 0.004, row=2), stage="t") == [("evaluation_falls", True, ["a"])]


def test_looking_again_says_nothing_twice_and_what_was_missed_is_told():
    job = Job(*BASE)
    job.rows += end(1, a=0.9, b=0.1, c=0.02)  # recorded, and the attempt died
    assert job.measured(*end(2, a=0.9, b=0.1, c=0.02)) == [("domain_lost", True, ["b"])]
    again = job.rows[-3:]
    job.rows = job.rows[:-3]
    assert job.measured(*again) == []


def test_failures_of_a_verifier_are_no_fall():
    job = Job(*BASE)
    assert job.measured(*end(1, a=0.1, b=0.1, c=0.02), unverified={"a": 0.5, "b": 0.05}) == [("domain_lost", True, ["b"])]


def test_rows_on_other_problems_are_not_looked_at():
    assert Job(*BASE).measured(Row(1, "boundary", 50, "b", 0.0, problems_digest="q")) == []


def test_two_domains_of_one_measurement_are_one_warning():
    job = Job(*BASE)
    job.measured(*end(1, a=0.1, b=0.1), own=())
    (warning,) = job.warnings
    assert warning.message == "scores fell below half of the base model's: a 0.100 (the base 0.600), b 0.100 (the base 0.500)"
    json.dumps(warning.to_json(), allow_nan=False)


def test_a_level_score_seldom_falls_in_many_evaluations():
    """Problems that are all right with probability 0.6: the most that scores can jump. Without the logarithm 15 of 100 stages of 20."""
    generator, alarms = np.random.default_rng(2), 0
    for _ in range(100):
        job = Job(*BASE)
        for step in range(1, 21):
            alarms += bool([code for code, raised, _ in job.measured(during(step, generator.binomial(PROBLEMS, 0.6) / PROBLEMS)) if raised])
    assert alarms <= 5


def replayed(record: dict) -> list:
    """What the signs would have said of a finished run, from its report."""
    report = record["report"]
    matrix, rows, found = report["score_matrix"], [], []

    def look(stage: str, index: int, step: int, at: str) -> None:
        active = active_signs([item.to_json() for item in found], stage)
        own = report["stages"][index]["domains"]
        found.extend(evaluation_warnings(rows, stage=stage, stage_index=index, step=step, at=at, own=own, active=active))

    problems = matrix["num_problems"]
    rows += [Row(0, "boundary", 0, name, mean, problems[name]) for name, mean in zip(matrix["domains"], matrix["means"][0], strict=True)]
    for index, stage in enumerate(report["stages"]):
        inside = [item for item in report["during"] if item["stage_index"] == index]
        for step in sorted({item["step"] for item in inside}):
            rows += [Row(index + 1, "during", step, item["domain"], item["mean"], problems[item["domain"]]) for item in inside if item["step"] == step]
            look(stage["name"], index, step, "during")
        end = stage["steps"]
        rows += [Row(index + 1, "boundary", end, name, mean, problems[name]) for name, mean in zip(matrix["domains"], matrix["means"][index + 1], strict=True)]
        look(stage["name"], index, end, "boundary")
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
FALLS = {"sdpo-ema5/first": 3, "sdpo-ema5/second": 3, "sdpo-ema5/long": 1, "pg-replayed/recorded": 4}
"""Warnings; the other arms and orders have none."""
