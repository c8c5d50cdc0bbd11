"""What is said about a job file that does not parse: where, what, and what is allowed instead."""

from __future__ import annotations

import copy

import pytest

from cluster.errors import SpecError
from services.jobs.faults import Fault, parse_job

STAGE = {"name": "s", "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}}
JOB = {"name": "x", "model": {"path": "m"}, "stages": [STAGE]}


def changed(**changes) -> dict:
    return copy.deepcopy(JOB) | changes


def staged(**changes) -> dict:
    return changed(stages=[STAGE | changes])


def faults(payload) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        parse_job(payload)
    found = caught.value.details["faults"]
    assert all(set(fault) == {"pointer", "detail", "code"} for fault in found)
    assert len({fault["pointer"] for fault in found}) == len(found), "one fault per place"
    return {fault["pointer"]: fault["detail"] for fault in found}


def test_a_good_file_parses():
    assert parse_job(JOB).stages[0].method.recipe == "grpo"


@pytest.mark.parametrize(
    ("payload", "pointer", "words"),
    [
        ([], "", ["[]", "an object"]),
        (changed(nmae="y"), "/nmae", ["unknown field 'nmae'", "did you mean 'name'?", "stages"]),
        (staged(method={"recipe": "grop"}), "/stages/0/method/recipe", ["unknown recipe 'grop'", "did you mean 'grpo'?", "sdpo"]),
        (staged(method={}), "/stages/0/method/recipe", ["required", "grpo, dr_grpo, dapo, sdpo, sdft", "sft, custom"]),
        (staged(method="grpo"), "/stages/0/method", ["'grpo' is not an object"]),
        (staged(method={"recipe": "grpo", "clip_hi": 1}), "/stages/0/method/clip_hi", ["did you mean 'clip_high'?"]),
        (staged(domain={"kind": "arithmetics"}), "/stages/0/domain/kind", ["did you mean 'arithmetic'?", "tool_call"]),
        (staged(domain=None), "/stages/0", ["exactly one of domain and domains"]),
        (staged(steps=0), "/stages/0/steps", ["0 is not allowed", "at least 1"]),
        (staged(steps=-3), "/stages/0/steps", ["-3", "at least 1"]),
        (staged(steps="many"), "/stages/0/steps", ["'many' is not a whole number"]),
        (staged(steps=1.5), "/stages/0/steps", ["1.5 is not a whole number"]),
        (staged(name="S P"), "/stages/0/name", ["'S P'", "lower-case letters"]),
        (changed(compute={"device": "gpu"}), "/compute/device", ["'gpu' is not allowed", "'cuda'"]),
        (changed(model={"path": "a", "id": "b"}), "/model", ["exactly one of path and id"]),
        (changed(labels={"a/b": 1}), "/labels/a~1b", ["1 is not a string"]),
        (changed(stages=[]), "/stages", ["at least 1"]),
        (changed(evaluation={"domains": "foo"}), "/evaluation/domains", ["'foo' is not allowed", "'all_stages' or a list"]),
        (changed(evaluation={"domains": [{"name": "x"}]}), "/evaluation/domains/0/domain", ["required"]),
        (changed(stages=[STAGE, STAGE]), "/stages/1/name", ["duplicate stage name 's'"]),
        (staged(method={"recipe": "sdpo", "teacher": {"kind": "ema", "update_rat": 1}}), "/stages/0/method/teacher/update_rat", ["did you mean 'update_rate'?"]),
        (staged(method={"recipe": "sdpo", "context": {"kind": "feedback", "feedback": 1}}), "/stages/0/method/context/feedback", ["unknown field 'feedback'"]),
        (staged(method={"recipe": "sdpo", "teacher": {"kind": "live"}, "context": {"kind": "none"}}), "/stages/0/method", ["identically zero"]),
        (staged(method={"recipe": "sdpo", "support": {"kind": "sampled"}}), "/stages/0/method", ["needs a top_k or full support"]),
    ],
)
def test_one_fault_names_the_place_the_value_and_what_is_allowed(payload, pointer, words):
    found = faults(payload)
    assert list(found) == [pointer]
    assert [word for word in words if word not in found[pointer]] == []


def test_all_faults_are_in_one_answer():
    payload = changed(seed=-1, nope=1, stages=[STAGE | {"steps": 0}, STAGE | {"method": {"recipe": "grop"}}, STAGE | {"extra": 1}])
    assert set(faults(payload)) == {
        "/seed", "/nope", "/stages/0/steps", "/stages/1/method/recipe", "/stages/1/name", "/stages/2/extra", "/stages/2/name",
    }  # fmt: skip


def test_a_fault_reads_as_an_object():
    assert dict(Fault("/a", "b", "c")) == {"pointer": "/a", "detail": "b", "code": "c"}


@pytest.mark.parametrize("payload", [None, 3, "x", {"stages": "no"}, {"stages": [3, None]}, {"stages": {"name": []}}, changed(stages=[STAGE | {"name": ["s"]}])])
def test_nonsense_is_refused_and_breaks_nothing(payload):
    assert faults(payload)


def test_a_stage_without_a_domain_is_said_even_beside_another_fault_of_it():
    payload = {"name": "a", "model": {"path": "x"}, "stages": [{"name": "s", "method": {"recipe": "grpoo"}}]}
    with pytest.raises(SpecError) as raised:
        parse_job(payload)
    assert sorted(fault["pointer"] for fault in raised.value.details["faults"]) == ["/stages/0", "/stages/0/method/recipe"]
