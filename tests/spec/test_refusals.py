"""What cannot learn is refused where the job file is read: the place, the reason, and the nearest thing that can."""

from __future__ import annotations

import pytest

from cluster.errors import SpecError
from services.jobs.faults import parse_job

PEBBLE = {"kind": "external", "path": "m"}
OTHER = {"kind": "external", "path": "n"}
SIBLING = {"kind": "sibling_solution"}
METHOD, STAGE = "/stages/0/method", "/stages/0"


def teacher_gradient(**advantage) -> dict:
    return {"kind": "policy_gradient", "advantage": {"outcome_weight": 0.0, "teacher_weight": 1.0, **advantage}}


def term(objective: dict | str, name: str = "t", **more) -> dict:
    return {"name": name, "objective": {"kind": objective} if isinstance(objective, str) else objective, **more}


def top_k(**changes) -> dict:
    return {"kind": "top_k", "k": 8, "support_from": "teacher", **changes}


def custom(*terms: dict, teacher: dict | None = PEBBLE, **more) -> dict:
    return {"recipe": "custom", "terms": list(terms), **({} if teacher is None else {"teacher": teacher}), **more}


def job(method: dict, **stage) -> dict:
    domain = {} if "domains" in stage else {"domain": {"kind": "arithmetic"}}
    return {"name": "x", "model": {"path": "m"}, "stages": [{"name": "s", **domain, "method": method, **stage}]}


def faults(payload: dict) -> list[dict]:
    with pytest.raises(SpecError) as caught:
        parse_job(payload)
    return caught.value.details["faults"]


REFUSED = {
    "cut completions, and a mask of the cut ones": (
        custom(term("reverse_kl", masks=[{"kind": "truncated"}]), experience={"kind": "policy", "prefix": {"start_tokens": 4}}),
        ["nothing is left to learn from"],
    ),
    "a top-k divergence as an advantage": (
        custom(term(teacher_gradient(), support=top_k())),
        ["constant of the position", "zero in expectation", "reverse_kl", "sampled support"],
    ),
    "a full divergence as an advantage": (custom(term(teacher_gradient(), support={"kind": "full"})), ["constant of the position"]),
    "reverse KL on the teacher's ids, tail dropped": (
        custom(term("reverse_kl", support=top_k(tail="drop"))),
        ["pushing the policy's mass off the support", "bucket, renormalise or sampled_correction"],
    ),
    "reverse KL on the policy's ids, tail dropped": (
        custom(term("reverse_kl", support=top_k(tail="drop", support_from="policy"))),
        ["not a stationary point"],
    ),
    "reverse KL, tail dropped, with the sampled token": (custom(term("reverse_kl", support=top_k(tail="drop", join_sampled=True))), ["off the support"]),
    "jensen-shannon, tail dropped": (custom(term("jensen_shannon", support=top_k(tail="drop"))), ["not bounded below", "bucket or renormalise"]),
    "jensen-shannon on the sampled token": (custom(term("jensen_shannon")), ["needs a top_k or full support", "reverse_kl or forward_kl"]),
    "renormalised support of one id": (
        custom(term("reverse_kl", support=top_k(k=1, tail="renormalise"))),
        ["always zero", "k of 2 or more, join_sampled, or tail bucket"],
    ),
    "sampled correction of a forward KL": (
        custom(term("forward_kl", support=top_k(tail="sampled_correction"))),
        ["tail of the reverse KL", "bucket or renormalise"],
    ),
    "sampled correction that counts the sampled token twice": (
        custom(term("reverse_kl", support=top_k(tail="sampled_correction", join_sampled=True))),
        ["already uses the sampled token", "join_sampled to false"],
    ),
    "an objective without a teacher on a support": (
        custom(term("cross_entropy", support=top_k()), term("forward_kl", "u", support=top_k())),
        ["does not compare with a teacher's support", "must be sampled, got top_k"],
    ),
    "two different top-k supports": (
        custom(term("reverse_kl", support=top_k()), term("forward_kl", "u", support=top_k(k=9))),
        ["share one top_k support", "k 8 from teacher", "k 9 from teacher"],
    ),
    "a live teacher that reads what the policy reads": (
        {"recipe": "sdpo", "teacher": {"kind": "live"}, "context": {"kind": "none"}},
        ["identically zero", "give a context, or use a frozen or ema teacher"],
    ),
    "an ema of rate 1 without a context": (custom(term("reverse_kl"), teacher={"kind": "ema", "update_rate": 1.0}), ["identically zero"]),
    "a trust region of mix 1 without a context": (custom(term("reverse_kl"), teacher={"kind": "trust_region", "mix": 1.0}), ["identically zero"]),
    "a mix that is all policy": (custom(term("reverse_kl"), teacher={"kind": "mix", "weight": 1.0}), ["identically zero"]),
    "a teacher restarted at the policy after every step": (
        custom(term("reverse_kl"), teacher={"kind": "restart_and_freeze", "period": 1, "gamma": 1.0}),
        ["identically zero"],
    ),
    "a mix beyond the policy": (
        custom(term("reverse_kl"), teacher={"kind": "mix", "weight": 1.25}),
        ["weight 1.25 extrapolates beyond policy", "0 to 1 there, or an external second"],
    ),
    "a mix of one source with itself": (
        custom(term("reverse_kl"), teacher={"kind": "mix", "first": PEBBLE, "second": PEBBLE, "weight": 0.5}),
        ["the same (external)", "two different sources"],
    ),
    "a mix the wrong way round": (
        custom(term("reverse_kl"), teacher={"kind": "mix", "first": {"kind": "policy"}, "second": {"kind": "anchor"}, "weight": 0.5}),
        ["anchor first and policy second"],
    ),
    "k1 as a loss": (
        {"recipe": "grpo", "reference_coefficient": 0.1, "reference_estimator": "k1"},
        ["zero expected gradient", "k2", "k3", "advantage.reference_penalty"],
    ),
    "an advantage that is zero": (
        custom(term({"kind": "policy_gradient", "advantage": {"outcome_weight": 0.0}}), teacher=None),
        ["every advantage is 0", "set one"],
    ),
    "a dual clip without a clip": (
        custom(term({"kind": "policy_gradient", "clip_high": None, "dual_clip": 3.0}), teacher=None),
        ["dual_clip", "clip_low and clip_high"],
    ),
    "a divergence turned around": (custom(term("forward_kl", coefficient=-1.0)), ["no lower bound", "above 0"]),
    "a term of coefficient 0": (custom(term("forward_kl", coefficient=0.0)), ["changes nothing", "leave the term out"]),
    "a random mask of everything": (custom(term("forward_kl", masks=[{"kind": "random", "ratio": 1.0}])), ["leaves no token", "below 1"]),
    "both regions": (
        custom(term("forward_kl", masks=[{"kind": "region", "keep": "thinking"}, {"kind": "region", "keep": "answer"}])),
        ["leave no token together"],
    ),
    "a constant that goes with another normaliser": (custom(term("forward_kl", normaliser_tokens=9)), ["goes with normaliser constant, not with token_mean"]),
    "two terms of one name": (custom(term("forward_kl"), term("reverse_kl")), ["same name: ['t', 't']"]),
    "a divergence without a teacher": (custom(term("forward_kl"), teacher=None), ["terms ['t'] read a teacher, but teacher is not set"]),
    "a mask by the entropy of no teacher": (
        custom(term("policy_gradient", masks=[{"kind": "entropy_threshold", "of": "teacher"}]), teacher=None),
        ["read a teacher, but teacher is not set"],
    ),
    "a teacher that nobody reads": (custom(term("policy_gradient")), ["no term distils from it"]),
    "a context that nobody reads": (custom(term("policy_gradient"), teacher=None, context=SIBLING), ["no teacher to read it"]),
    "targets told apart without a teacher": (custom(term("policy_gradient", samples="with_target"), teacher=None), ["but teacher is not set"]),
    "distilling without a target": (
        custom(term("forward_kl", samples="without_target"), term("reverse_kl", "u"), context=SIBLING),
        ["samples is without_target", "use with_target"],
    ),
    "rollouts without a target where each has one": (
        custom(term("forward_kl"), term("policy_gradient", "u", samples="without_target"), context={**SIBLING, "when_empty": "plain_prompt"}),
        ["every rollout has one", "when_empty mask"],
    ),
    "demonstrations under a policy gradient": (
        custom(term("policy_gradient"), teacher=None, experience={"kind": "demonstrations"}),
        ["no rollout log-probabilities", "only cross_entropy"],
    ),
    "demonstrations with a shaped score": (
        custom(term("cross_entropy"), teacher=None, experience={"kind": "demonstrations"}, advantage={"overlong": {"buffer_tokens": 4}}),
        ["no advantages"],
    ),
    "a template without the problem": (
        {"recipe": "sdpo", "context": {**SIBLING, "template": {"text": "Look: {{ solution }}"}}},
        ["does not use {{ problem }}"],
    ),
}


@pytest.mark.parametrize(("method", "words"), REFUSED.values(), ids=REFUSED)
def test_a_method_that_cannot_learn_is_refused_with_the_reason_and_what_is_nearest(method, words):
    (fault,) = faults(job(method))
    assert (fault["pointer"], fault["code"]) == (METHOD, "cannot_learn")
    assert [word for word in words if word not in fault["detail"]] == []


UNDER_A_STAGE = {
    "a ratio to probabilities of the nucleus": ({"recipe": "grpo"}, {"sampling": {"top_p": 0.9}}, ["importance_cap", "top_p 0.9", "to null"]),
    "the same with top_k": ({"recipe": "sdft"}, {"sampling": {"top_k": 5}}, ["importance_cap", "top_k 5"]),
    "a teacher's advantage over the nucleus": (
        {"recipe": "tm_opd", "teacher": PEBBLE},
        {"sampling": {"top_p": 0.9}},
        ["log q - log p of the rollout", "top_k support with reverse_kl"],
    ),
    "a penalty in the score over the nucleus": (
        custom(term("policy_gradient", importance_cap=None), teacher=None, advantage={"reference_penalty": {"coefficient": 0.1}}),
        {"sampling": {"top_p": 0.9}},
        ["reference_penalty", "use a reference_kl term"],
    ),
    "more ids than sampling leaves": (
        custom(term("reverse_kl", support=top_k(support_from="rollout"), importance_cap=None)),
        {"sampling": {"top_k": 5}},
        ["rollout's 8 most likely ids", "sampling.top_k 5", "support_from policy or teacher"],
    ),
    "a replayed record of the nucleus": (
        custom(term("policy_gradient", importance_cap=None), teacher=None, experience={"kind": "replayed", "path": "p"}),
        {"sampling": {"top_p": 0.9}},
        ["another policy's rollouts", "record with top_p 1"],
    ),
    "more updates than demonstrations": (
        {"recipe": "sft"}, {"updates_per_batch": 3, "problems_per_step": 2, "rollouts_per_problem": 4}, ["3 is more than the 2"],
    ),
    "more updates than completions": ({"recipe": "grpo"}, {"updates_per_batch": 9, "problems_per_step": 2, "rollouts_per_problem": 4}, ["9 is more than the 8"]),
    "teachers of other domains": (
        custom(term("reverse_kl"), teacher={"kind": "per_domain", "teachers": {"a": PEBBLE}}),
        {},
        ["teachers for ['a']", "domains are ['s']"],
    ),
    "contexts of other domains": (
        custom(term("reverse_kl"), teacher={"kind": "frozen"}, domain_contexts={"a": SIBLING}),
        {},
        ["domain_contexts names ['a']", "domains are ['s']"],
    ),
    "a live teacher in the domain that no context reaches": (
        custom(term("reverse_kl"), teacher={"kind": "live"}, domain_contexts={"a": SIBLING}),
        {"domains": [{"name": "a", "domain": {"kind": "strings"}}, {"name": "b", "domain": {"kind": "arithmetic"}}]},
        ["domain 'b'", "identically zero"],
    ),
}


@pytest.mark.parametrize(("method", "stage", "words"), UNDER_A_STAGE.values(), ids=UNDER_A_STAGE)
def test_a_method_that_does_not_go_with_its_stage_is_refused_at_the_stage(method, stage, words):
    (fault,) = faults(job(method, **stage))
    assert (fault["pointer"], fault["code"]) == (STAGE, "cannot_learn")
    assert [word for word in words if word not in fault["detail"]] == []


ALLOWED = {
    "reverse KL on the teacher's ids with a bucket": (custom(term("reverse_kl", support=top_k(tail="bucket"))), {}),
    "reverse KL on the teacher's ids with the sampled correction": (custom(term("reverse_kl", support=top_k(tail="sampled_correction"))), {}),
    "one id joined with the sampled one, renormalised": (custom(term("reverse_kl", support=top_k(k=1, tail="renormalise", join_sampled=True))), {}),
    "one id with a bucket": (custom(term("reverse_kl", support=top_k(k=1))), {}),
    "forward KL on the sampled token": (custom(term("forward_kl")), {}),
    "forward KL with the tail dropped": (custom(term("forward_kl", support=top_k(tail="drop"))), {}),
    "tails that differ on one support": (
        custom(term("reverse_kl", support=top_k(tail="bucket")), term("forward_kl", "u", support=top_k(tail="drop"))),
        {},
    ),
    "extrapolation beyond an external teacher": (custom(term("reverse_kl"), teacher={"kind": "mix", "second": PEBBLE, "weight": 1.25}), {}),
    "a mix of two external teachers": (custom(term("reverse_kl"), teacher={"kind": "mix", "first": OTHER, "second": PEBBLE, "weight": 2}), {}),
    "whole vocabularies of teachers by domain, each with an output matrix of its own": (
        custom(term("forward_kl", support={"kind": "full"}), teacher={"kind": "per_domain", "teachers": {"s": PEBBLE}}),
        {},
    ),
    "a live teacher with a context": ({"recipe": "sdpo", "teacher": {"kind": "live"}}, {}),
    "a live teacher with a context in every domain": (custom(term("reverse_kl"), teacher={"kind": "live"}, domain_contexts={"s": SIBLING}), {}),
    "live where there is a context, external where there is none": (
        custom(
            term("reverse_kl"),
            teacher={"kind": "per_domain", "teachers": {"a": {"kind": "live"}, "b": PEBBLE}},
            domain_contexts={"a": SIBLING},
        ),
        {"domains": [{"name": "a", "domain": {"kind": "strings"}}, {"name": "b", "domain": {"kind": "arithmetic"}}]},
    ),
    "a teacher and a reference": ({"recipe": "sdpo", "reference_coefficient": 0.1}, {}),
    "k1 in the score": (custom(term("policy_gradient"), teacher=None, advantage={"reference_penalty": {"coefficient": 0.1, "estimator": "k1"}}), {}),
    "an entropy penalty": (custom(term("policy_gradient"), term("entropy_bonus", "e", coefficient=-0.1), teacher=None), {}),
    "a top-k divergence under top_p": ({"recipe": "opd_topk", "teacher": PEBBLE}, {"sampling": {"top_p": 0.9}}),
    "a policy gradient under top_p without the ratio to the rollout": ({"recipe": "grpo", "importance_cap": None}, {"sampling": {"top_p": 0.9}}),
    "opsd as its paper samples": ({"recipe": "opsd"}, {"sampling": {"temperature": 1.1, "top_p": 0.95, "top_k": 20}}),
}


@pytest.mark.parametrize(("method", "stage"), ALLOWED.values(), ids=ALLOWED)
def test_what_is_next_to_a_refusal_and_can_learn_is_let_in(method, stage):
    assert parse_job(job(method, **stage)).resolved_stages()


def test_every_reason_is_a_fault_of_its_own_and_stages_are_told_together():
    payload = job(custom(term("reverse_kl", support=top_k(tail="drop"), coefficient=0.0), teacher=None))
    payload["stages"].append({"name": "u", "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}, "sampling": {"top_p": 0.5}})
    found = [(fault["pointer"], fault["code"]) for fault in faults(payload)]
    assert found == [(METHOD, "cannot_learn")] * 3, "parts that do not parse come first"
    payload["stages"][0]["method"] = {"recipe": "sdpo", "support": {"kind": "sampled"}}
    found = [(fault["pointer"], fault["code"]) for fault in faults(payload)]
    assert found == [(METHOD, "cannot_learn"), ("/stages/1", "cannot_learn")]


def test_a_context_written_out_says_itself_what_it_does_where_it_is_empty():
    (fault,) = faults(job({"recipe": "sdpo", "context": SIBLING, "when_empty": "plain_prompt"}))
    assert fault["pointer"] == METHOD and "write when_empty into the context" in fault["detail"]
