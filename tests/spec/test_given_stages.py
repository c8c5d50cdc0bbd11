"""Stages that are given a checkpoint in place of a method: what they resolve to, and what is refused."""

from __future__ import annotations

import pytest

from cluster.errors import SpecError
from cluster.spec.job import GIVEN, evaluation_domains, longest_sequence
from services.jobs.faults import parse_job

DOMAIN = {"kind": "arithmetic"}
TRAINED = {"name": "trained", "domain": {"kind": "tool_call"}, "method": {"recipe": "sdpo"}}


def given(name: str = "given", **changes) -> dict:
    return {"name": name, "domain": DOMAIN, "policy": {"path": "checkpoint"}} | changes


def job(*stages: dict, **changes):
    return parse_job({"name": "x", "model": {"path": "base"}, "stages": list(stages)} | changes)


def faults(*stages: dict) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as raised:
        job(*stages)
    return [(fault["pointer"], fault["detail"]) for fault in raised.value.details["faults"]]


def test_a_given_stage_has_no_steps_and_nothing_to_learn_from():
    stages = job(given(), TRAINED, defaults={"steps": 9, "updates_per_batch": 4000, "problems_per_step": 1000}).resolved_stages()
    assert (stages[0].recipe, stages[0].steps, stages[0].policy.path) == (GIVEN, 0, "checkpoint")
    composition = stages[0].composition
    assert composition.terms == () and composition.teacher is None and not composition.needs_scorer and composition.rollout_support_k == 0
    assert (stages[1].recipe, stages[1].steps, stages[1].policy) == ("sdpo", 9, None)


def test_its_domains_are_scored_and_its_sampling_counts_for_the_evaluation():
    spec = job(given(max_prompt_tokens=100, sampling={"max_tokens": 30}), defaults={"max_prompt_tokens": 7})
    assert [suite.name for suite in evaluation_domains(spec)] == ["given"]
    assert longest_sequence(spec) == 130


def test_a_later_stage_may_replay_what_a_given_one_was_trained_on():
    spec = job(given(), TRAINED | {"replay": {"share": 0.25}})
    assert [(part.name, part.weight) for part in spec.resolved_stages()[1].domains] == [("trained", 1.0), ("given", pytest.approx(1 / 3))]


@pytest.mark.parametrize("stage", [given(method={"recipe": "grpo"}), {"name": "given", "domain": DOMAIN}])
def test_exactly_one_of_method_and_policy(stage):
    assert faults(stage, TRAINED) == [("/stages/0", "a stage has exactly one of method and policy")]


def test_both_pairs_are_told_at_once_and_beside_other_faults():
    found = faults({"name": "given"}, TRAINED | {"steps": 0})
    assert ("/stages/0", "a stage has exactly one of method and policy") in found
    assert ("/stages/0", "a stage has exactly one of domain and domains") in found
    assert any(pointer == "/stages/1/steps" for pointer, _ in found) and len(found) == 3


@pytest.mark.parametrize(
    "field",
    [
        {"steps": 3},
        {"problems_per_step": 4},
        {"rollouts_per_problem": 2},
        {"updates_per_batch": 2},
        {"optimizer": {"lr": 1e-5}},
        {"boundary": {}},
        {"replay": {"share": 0.1}},
    ],
)
def test_what_says_how_to_train_is_refused_by_name(field):
    ((pointer, detail),) = faults(given(**field))
    assert pointer == "/stages/0" and next(iter(field)) in detail and "trains nothing" in detail


def test_a_policy_is_a_folder_or_an_id():
    found = faults(given(policy={"path": "a", "id": "b/c"}))
    assert [pointer for pointer, _ in found] == ["/stages/0/policy"] and "exactly one of path and id" in found[0][1]
    assert job(given(policy={"id": "org/name", "revision": "main"})).stages[0].policy.revision == "main"
