"""``holdfast evaluate``: the job file that its arguments stand for, and what it refuses. The run itself: tests/e2e/test_given_series.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from api.commands.console import Exit, Refused
from api.commands.evaluate import series
from api.commands.series import build_series, parse_domain, stage_names
from cluster.spec.job import evaluation_domains
from services.jobs.faults import parse_job

PEBBLE = Path(__file__).resolve().parents[2] / "deploy" / "models" / "pebble"
SERIES_FILE = PEBBLE.parents[1] / "jobs" / "evaluate-series.yaml"
DOMAINS = ("sums=arithmetic:digits=3,operations=[+,-]", "letters=strings:length=[4,6]", "tools=tool_call")


def test_arguments_become_a_job_of_given_stages_with_their_own_domains():
    payload = build_series("base", ["runs/a/checkpoint-10", "runs/b/checkpoint-20"], DOMAINS, ["sums", "letters+sums"], problems=64)
    job = parse_job(payload)
    assert [(stage.name, stage.policy.path) for stage in job.stages] == [("checkpoint-10", "runs/a/checkpoint-10"), ("checkpoint-20", "runs/b/checkpoint-20")]
    assert [[part.name for part in stage.domains] for stage in job.stages] == [["sums"], ["letters", "sums"]]
    suites = {suite.name: suite for suite in evaluation_domains(job)}
    assert list(suites) == ["sums", "letters", "tools"] and {suite.problems for suite in suites.values()} == {64}
    assert (suites["sums"].domain.digits, suites["sums"].domain.operations, suites["letters"].domain.length) == (3, ("+", "-"), (4, 6))


def test_one_trained_on_is_for_all_and_a_single_domain_needs_none():
    for trained_on in (["sums"], []):
        payload = build_series("base", ["a", "b"], ["sums=arithmetic"], trained_on)
        assert [stage["domains"][0]["name"] for stage in payload["stages"]] == ["sums", "sums"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/Checkpoint-5", "x/checkpoint-6/"], ["checkpoint-5", "checkpoint-6"]),
        (["runs/0-math/policy", "runs/1-law/policy"], ["0-math-policy", "1-law-policy"]),
        (["same", "same"], ["same-1", "same-2"]),
        (["hub:Org/Model.v1@abc", "/" + "long" * 40], ["model-v1-abc", ("long" * 40)[-63:]]),
    ],
)
def test_stages_are_named_after_their_folders(paths, names):
    assert stage_names(paths) == names


def test_an_id_with_a_revision():
    payload = build_series("hub:org/base@v1", ["hub:org/tuned"], ["sums=arithmetic"], [])
    assert payload["model"] == {"id": "org/base", "revision": "v1"} and payload["stages"][0]["policy"] == {"id": "org/tuned"}


def test_values_of_a_domain_are_yaml_and_keep_their_own_commas():
    name, domain = parse_domain('law=dataset:path=law.jsonl,columns={problem: q, answer: a},verifier={kind: multiple_choice},template="a, {problem}"')
    assert name == "law" and domain["columns"] == {"problem": "q", "answer": "a"} and domain["template"] == "a, {problem}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((["a", "b"], DOMAINS, ["sums"] * 3), "given 3 times for 2 checkpoints"),
        ((["a"], DOMAINS, []), "given 0 times for 1 checkpoints"),
        ((["a"], DOMAINS, ["poems"]), "poems is no --domain; there are sums, letters, tools"),
        ((["a"], [], ["sums"]), "--domain is missing"),
        ((["a"], ["sums"], ["sums"]), "NAME=KIND"),
        ((["a"], ["sums=arithmetic:digits"], ["sums"]), "'digits' is not of the form key=value"),
        ((["a"], ["sums=arithmetic", "sums=tool_call"], ["sums"]), "the same name"),
        (([], DOMAINS, ["sums"]), "one checkpoint or more"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(arguments, words):
    with pytest.raises(Refused, match=words):
        build_series("base", *arguments)


def test_a_series_file_is_taken_as_it_is_and_changed_by_set():
    payload = series([str(SERIES_FILE)], (), (), ["stages.strings.policy.path=elsewhere"], problems=9, name="x")
    assert payload["evaluation"]["problems"] == 9 and payload["stages"][1]["policy"]["path"] == "elsewhere"
    assert payload["stages"][0]["policy"]["path"] == str(PEBBLE)


def test_a_job_file_without_checkpoints_and_options_of_the_other_form_are_refused():
    with pytest.raises(Refused, match="no stage with policy"):
        series([str(SERIES_FILE.parent / "demo.yaml")], (), (), (), problems=None, name="x")
    with pytest.raises(Refused, match="--domain and --trained-on go with a base model"):
        series([str(SERIES_FILE)], ["a=arithmetic"], ["a"], (), problems=None, name="x")


def test_every_fault_is_told_before_a_service_is_started(holdfast, settings, tmp_path):
    result = holdfast("evaluate", PEBBLE, tmp_path / "nowhere", "--domain", "sums=arithmetic:digits=99")
    assert result.exit_code == Exit.REFUSED
    assert "/stages/0/domains/0/domain/digits" in result.output and "does not exist" in result.output
    assert not settings.home.exists()
    (tmp_path / "file").write_text("")
    assert "is a file" in holdfast("evaluate", PEBBLE, PEBBLE, "--domain", "sums=arithmetic", "--out", tmp_path / "file").output
