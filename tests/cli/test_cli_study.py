"""``holdfast study`` with no service running: validate, report from records, files that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cluster.spec.study import StudySpec, expand
from services.jobs.study_records import record_text

STUDY = {
    "name": "small",
    "base": {
        "name": "base",
        "model": {"path": "deploy/models/pebble"},
        "defaults": {"steps": 3, "max_prompt_tokens": 160, "sampling": {"max_tokens": 32}},
        "stages": [{"name": "arithmetic", "domain": {"kind": "arithmetic", "digits": 2}, "method": {"recipe": "grpo"}}],
        "evaluation": {"problems": 200},
    },
    "arms": [{"name": "plain"}, {"name": "fast", "set": {"defaults.optimizer.lr": 1e-4}}],
    "orders": [{"name": "only", "stages": ["arithmetic"], "seeds": [1, 2]}],
    "hypotheses": [{"name": "faster", "claim": "a larger rate learns more", "figure": "gain", "arm": "fast", "against": "plain", "expect": "higher"}],
}


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


def _record(folder: Path, **changes) -> None:
    member = expand(StudySpec.model_validate(STUDY))[0]
    record = {"format": 1, "study": "small", "arm": member.arm, "order": member.order, "seed": member.seed, "digest": member.digest, "status": "succeeded", "report": {"format": 2}} | changes
    path = folder / record["arm"] / f"{record['order']}-{record['seed']}.json"
    path.parent.mkdir(parents=True)
    path.write_text(record_text(record))


def test_a_good_file_is_valid(holdfast, study_file):
    result = holdfast("study", "validate", study_file, "-o", "json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert (plan["num_members"], plan["num_recorded"], plan["total_steps"]) == (4, 0, 12)
    assert "4 members, 0 of them recorded" in holdfast("study", "validate", study_file).stdout


def test_members_with_a_record_would_not_run(holdfast, study_file, tmp_path):
    _record(tmp_path / "records")
    plan = json.loads(holdfast("study", "validate", study_file, "--records", tmp_path / "records", "-o", "json").stdout)
    assert (plan["num_recorded"], plan["total_steps"]) == (1, 9)


def test_faults_have_pointers_into_the_file(holdfast, study_file):
    result = holdfast("study", "validate", study_file, "--set", "arms.fast.set={stages.arithmetic.rollouts_per_problem: 1}", "-o", "json")
    assert result.exit_code == 2
    assert [fault["pointer"] for fault in json.loads(result.stdout)["error"]["faults"]] == ["/arms/1/set/stages.arithmetic.rollouts_per_problem"]


def test_a_file_that_is_no_record_is_named(holdfast, study_file, tmp_path):
    _record(tmp_path / "records", status="running")
    result = holdfast("study", "validate", study_file, "--records", tmp_path / "records")
    assert result.exit_code == 2 and "its status is 'running'" in " ".join(result.output.split())


def test_a_report_of_a_file_needs_records_and_no_service(holdfast, study_file, tmp_path):
    assert holdfast("study", "report", study_file).exit_code == 2
    result = holdfast("study", "report", study_file, "--records", tmp_path / "none", "-o", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["progress"]["missing"] == 4
    assert holdfast("study", "report", study_file, "--records", tmp_path / "none", "--html", tmp_path / "page.html").exit_code == 0
    assert "small" in (tmp_path / "page.html").read_text()
    assert holdfast("study", "report", study_file, "--records", tmp_path / "none", "--markdown", tmp_path / "new" / "figures.md").exit_code == 0
    assert (tmp_path / "new" / "figures.md").read_text().startswith("# small: the figures")


def test_the_other_commands_need_the_service(holdfast):
    for arguments in (("list",), ("show", "small"), ("cancel", "small")):
        assert holdfast("study", *arguments).exit_code == 4
