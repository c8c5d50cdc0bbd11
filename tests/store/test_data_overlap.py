"""What is evaluated is not trained on: data sets that share prompts are refused at admission."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.spec.job import JobSpec
from services.jobs.data_overlap import check_overlap


def _rows(path: Path, train: range, evaluation: range, words: str = "What is {}?") -> str:
    rows = [{"problem": words.format(number), "answer": str(number), "split": split} for split, numbers in (("train", train), ("evaluation", evaluation)) for number in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def _job(*stages: dict, suites: list[dict] | str = "all_stages") -> JobSpec:
    method = {"recipe": "grpo"}
    return JobSpec.model_validate({"name": "j", "model": {"path": "m"}, "stages": [{**stage, "method": method} for stage in stages], "evaluation": {"domains": suites}})


def _domain(name: str, **fields) -> dict:
    return {"kind": "dataset", "path": name, "columns": {"split": "split"}, **fields}


def test_a_suite_that_shares_prompts_with_training_rows_is_refused(tmp_path):
    _rows(tmp_path / "train.jsonl", range(100), range(900, 910))
    _rows(tmp_path / "test.jsonl", range(500, 510), range(95, 105))
    spec = _job({"name": "a", "domain": _domain("train.jsonl")}, suites=[{"name": "held-out", "domain": _domain("test.jsonl")}])
    faults = check_overlap(spec, tmp_path)
    assert [(fault.pointer, fault.code) for fault in faults] == [("/evaluation/domains/0/domain", "overlap")]
    assert "5 of the 10 problems" in faults[0].detail and "stage 'a'" in faults[0].detail and "'What is 95?'" in faults[0].detail


def test_a_later_stage_may_not_train_on_what_an_earlier_one_evaluates(tmp_path):
    _rows(tmp_path / "one.jsonl", range(10), range(20, 30))
    _rows(tmp_path / "two.jsonl", range(25, 40), range(50, 60))
    spec = _job({"name": "a", "domain": _domain("one.jsonl")}, {"name": "b", "domains": [{"name": "two", "domain": _domain("two.jsonl"), "weight": 1}]})
    faults = check_overlap(spec, tmp_path)
    assert [fault.pointer for fault in faults] == ["/stages/0/domain"] and "5 of the 10" in faults[0].detail and "stage 'b'" in faults[0].detail


def test_it_is_the_prompt_after_the_template_that_counts(tmp_path):
    _rows(tmp_path / "bare.jsonl", range(10), range(20, 30), words="{}")
    _rows(tmp_path / "whole.jsonl", range(20, 22), range(60, 70), words="What is  {}?")
    stages = {"name": "a", "domain": _domain("bare.jsonl", template="What is {problem}?")}, {"name": "b", "domain": _domain("whole.jsonl")}
    assert len(check_overlap(_job(*stages), tmp_path)) == 1
    stages[0]["domain"]["template"] = "{problem}"
    assert check_overlap(_job(*stages), tmp_path) == []


@pytest.mark.parametrize("same", [True, False])
def test_one_data_set_twice_is_no_overlap_and_neither_are_disjoint_ones(tmp_path, same):
    _rows(tmp_path / "one.jsonl", range(10), range(20, 30))
    _rows(tmp_path / "two.jsonl", range(100, 110), range(120, 130))
    names = ("one.jsonl", "one.jsonl") if same else ("one.jsonl", "two.jsonl")
    spec = _job({"name": "a", "domain": _domain(names[0])}, suites=[{"name": "s", "domain": _domain(names[1])}])
    assert check_overlap(spec, tmp_path) == []
