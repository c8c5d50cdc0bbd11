"""validate and schema with no service running: exit codes, pointers, suggestions, --set."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from api.commands.console import Refused
from api.commands.job_file import load

ROOT = Path(__file__).resolve().parents[2]
JOB = {
    "version": 1,
    "name": "small",
    "model": {"path": "deploy/models/pebble"},
    "defaults": {"steps": 3, "max_prompt_tokens": 160, "sampling": {"max_tokens": 32}},
    "stages": [
        {"name": "arithmetic", "domain": {"kind": "arithmetic", "digits": 2}, "method": {"recipe": "grpo"}},
        {"name": "strings", "domain": {"kind": "strings", "operation": "sort"}, "method": {"recipe": "sdpo"}},
    ],
    "evaluation": {"problems": 200},
}


@pytest.fixture
def job_file(tmp_path: Path):
    def write(changes: dict | None = None, text: str | None = None) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text if text is not None else yaml.safe_dump({**JOB, **(changes or {})}))
        return path

    return write


def test_a_good_file_is_valid_and_its_plan_counts_the_steps(holdfast, job_file):
    result = holdfast("validate", job_file(), "-o", "json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["total_steps"] == 6
    assert plan["evaluation_problems"] == 3 * 2 * 200  # base and two stages, two domains


def test_resolved_prints_what_a_recipe_became(holdfast, job_file):
    result = holdfast("validate", job_file(), "--resolved")
    stages = yaml.safe_load(result.stdout)["stages"]
    assert [stage["recipe"] for stage in stages] == ["grpo", "sdpo"]
    assert stages[0]["composition"]["teacher"] is None
    assert stages[1]["composition"]["teacher"]["kind"] == "ema"
    assert stages[1]["steps"] == 3


def test_every_fault_is_told_at_once_with_its_place_and_a_suggestion(holdfast, job_file):
    stages = [
        {"name": "arithmetic", "domain": {"kind": "arithmetic", "digits": 2}, "method": {"recipe": "grop"}},
        {"name": "strings", "domain": {"kind": "strings", "operation": "sort"}, "method": {"recipe": "grpo"}, "stesp": 5},
    ]
    result = holdfast("validate", job_file({"stages": stages, "seed": -1}))
    assert result.exit_code == 2
    assert "/stages/0/method/recipe" in result.output and "did you mean 'grpo'" in result.output
    assert "/stages/1/stesp" in result.output and "did you mean 'steps'" in result.output
    assert "/seed" in result.output


def test_faults_are_json_for_programs(holdfast, job_file):
    result = holdfast("validate", job_file({"model": {"path": "no/such/folder"}}), "-o", "json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["reason"] == "invalid_spec" and error["exit_code"] == 2
    assert [fault["pointer"] for fault in error["faults"]] == ["/model/path"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("version: 1\nname: [unclosed", "line"),
        ("version: 1\nname: a\nname: b\n", "'name' appears twice"),
        ("- just\n- a list\n", "an object"),
        ("name: !!python/object/apply:os.system ['true']\n", "not YAML or JSON"),
    ],
)
def test_what_is_no_job_file_is_refused_with_the_reason(holdfast, job_file, text, told):
    result = holdfast("validate", job_file(text=text))
    assert result.exit_code == 2
    assert told in result.output


def test_a_file_that_is_not_there_is_refused(holdfast, tmp_path):
    result = holdfast("validate", tmp_path / "none.yaml")
    assert result.exit_code == 2 and "none.yaml" in result.output


def test_set_changes_values_by_path_by_number_and_by_stage_name(job_file):
    changes = ["defaults.steps=10", "stages.1.steps=4", "stages.strings.optimizer.lr=1e-4", "labels.team=x", "stages.arithmetic.domain={kind: tool_call}"]
    payload = load(job_file(), changes)
    assert payload["defaults"]["steps"] == 10
    assert payload["stages"][1]["steps"] == 4
    assert float(payload["stages"][1]["optimizer"]["lr"]) == 1e-4
    assert payload["labels"] == {"team": "x"}
    assert payload["stages"][0]["domain"] == {"kind": "tool_call"}


@pytest.mark.parametrize(("change", "told"), [("steps", "a.b=value"), ("stages.math.steps=1", "arithmetic, strings"), ("name.x=1", "no parts")])
def test_set_refuses_what_it_cannot_place(job_file, change, told):
    with pytest.raises(Refused, match=told):
        load(job_file(), [change])


def test_paths_are_taken_from_the_current_folder_or_from_the_file_s_own(job_file, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert load(job_file())["model"]["path"] == str(ROOT / "deploy/models/pebble")
    (tmp_path / "beside").mkdir()
    assert load(job_file({"model": {"path": "beside"}}))["model"]["path"] == str((tmp_path / "beside").resolve())


def test_the_schema_is_a_schema_and_accepts_the_shipped_files(holdfast):
    schema = json.loads(holdfast("schema").stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    for path in (ROOT / "deploy" / "jobs").glob("*.yaml"):
        jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(path.read_text()))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**JOB, "stages": []}, schema)


def test_shipped_job_files_are_valid_on_this_machine(holdfast):
    for path in (ROOT / "deploy" / "jobs").glob("*.yaml"):
        result = holdfast("validate", path)
        assert result.exit_code == 0, result.output


def test_shipped_studies_are_valid_on_this_machine(holdfast):
    for path in sorted((ROOT / "deploy" / "studies").rglob("*.yaml")):
        result = holdfast("study", "validate", path)
        assert result.exit_code == 0, result.output


def test_the_recipes_are_printed_as_a_table(holdfast):
    result = holdfast("schema", "--recipes")
    assert result.exit_code == 0 and result.stdout.startswith("| recipe | teacher weights |")
    assert "| `dapo` | - | - | PG of A, clip 0.2/0.28 |" in result.stdout


def test_the_plan_says_what_the_methods_stand_for_and_need(holdfast, job_file):
    stages = [
        {"name": "jumps", "domain": {"kind": "arithmetic"}, "method": {"recipe": "stable_sdpo", "period": 2}, "steps": 4},
        {"name": "pulled", "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo", "reference_coefficient": 0.1}, "updates_per_batch": 2},
        {"name": "gated", "domain": {"kind": "arithmetic"}, "method": {"recipe": "sdft", "top_entropy": 0.2}},
    ]
    plan = json.loads(holdfast("validate", job_file({"stages": stages}), "-o", "json").stdout)
    notes = " / ".join(plan["notes"])
    assert "stage 'jumps': a jump of 0.4 every 2 steps keeps as much of the old teacher as an EMA of rate 0.2254 per step" in notes
    assert "stage 'pulled' needs a reference (reset)" in notes and "stage 'pulled': the learner scores each batch" in notes
    assert "'gated' needs a teacher (ema 0.01 per optimizer step)" in notes and "(a mask by the policy's entropy)" in notes
    assert plan["resources"]["needed"]["CPU"] == 3, "engine, learner, and one process for teacher and reference"


def test_a_reference_without_a_teacher_takes_a_process_too(holdfast, job_file):
    def needed(method: dict) -> float:
        stages = [{"name": "a", "domain": {"kind": "arithmetic"}, "method": method}]
        return json.loads(holdfast("validate", job_file({"stages": stages}), "-o", "json").stdout)["resources"]["needed"]["CPU"]

    assert needed({"recipe": "grpo"}) == 2
    assert needed({"recipe": "grpo", "reference_coefficient": 0.1}) == 3
