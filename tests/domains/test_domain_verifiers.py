"""What the procedural verifiers say of concrete completions, in words that a teacher may read."""

from __future__ import annotations

import pytest

from cluster.messages import Problem
from cluster.spec.domains import ArithmeticDomain, StringsDomain, ToolCallDomain
from rollout.domains import build_domain
from rollout.domains.tool_call import TOOLS, compact

LIGHT = {"tool": "light", "args": {"room": "den", "pct": 40}}


def problem_with(answer) -> Problem:
    return Problem(problem_id="d/train/0", domain="d", messages=({"role": "user", "content": "?"},), solution="", answer=answer)


@pytest.mark.parametrize(
    ("completion", "feedback"),
    [
        ("95", ""),
        (" 95\n", ""),
        ("94", "too small"),
        ("-95", "too small"),
        ("950", "too large"),
        ("", "not a number"),
        ("095", "not a number"),
        ("95.0", "not a number"),
        ("37+58=95", "not a number"),
        ("\u0669\u0665", "not a number"),
        ("9" * 5000, "not a number"),
    ],
)
def test_arithmetic(completion, feedback):
    domain = build_domain(ArithmeticDomain(), name="d", seed=0)
    verdict = domain.verify(problem_with(95), completion)
    assert (verdict.passed, verdict.score, verdict.feedback) == (feedback == "", float(feedback == ""), feedback)


@pytest.mark.parametrize(
    ("operation", "given", "answer"),
    [("sort", "dbcab", "abbcd"), ("reverse", "dbca", "acbd"), ("uppercase", "ab", "AB"), ("dedupe", "abcab", "abc"), ("rotate", "dbca", "bcad"), ("swap", "dbcae", "bdace")],
)
def test_string_operations(operation, given, answer):
    from rollout.domains.strings import OPERATIONS

    assert OPERATIONS[operation](given) == answer


@pytest.mark.parametrize(
    ("completion", "feedback"),
    [
        ("abbd", ""),
        ("abd", "missing: b"),
        ("abbdd", "extra: d"),
        ("bad", "missing: b"),
        ("badb", "wrong order"),
        ("abbc", "missing: d, extra: c"),
        ("ABBD", "missing: abbd, extra: ABBD"),
        ("", "missing: abbd"),
        ("x" * 100, "missing: abbd, extra: xxxxxx"),
    ],
)
def test_strings(completion, feedback):
    domain = build_domain(StringsDomain(), name="d", seed=0)
    verdict = domain.verify(problem_with("abbd"), completion)
    assert (verdict.passed, verdict.feedback) == (feedback == "", feedback)


@pytest.mark.parametrize(
    ("completion", "feedback"),
    [
        (compact(LIGHT), ""),
        ('{ "args": {"pct": 40, "room": "den"}, "tool": "light" }', ""),
        ("light den 40", "not JSON"),
        (compact(LIGHT)[:-1], "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("9" * 5000, "not JSON"),
        ("[1]", "answer must be object"),
        ("{}", "missing tool"),
        ('{"tool":"light"}', "missing args"),
        ('{"tool":"timer","args":{"min":4}}', "wrong tool"),
        ('{"tool":["light"],"args":{}}', "no such tool"),
        ('{"tool":"lamp","args":{}}', "no such tool"),
        ('{"tool":"light","args":[]}', "args must be object"),
        ('{"tool":"light","args":{"room":"den"}}', "missing pct"),
        ('{"tool":"light","args":{"room":"den","pct":"40"}}', "pct must be integer"),
        ('{"tool":"light","args":{"room":"den","pct":true}}', "pct must be integer"),
        ('{"tool":"light","args":{"room":7,"pct":40}}', "room must be string"),
        ('{"tool":"light","args":{"room":"den","pct":40,"x":1}}', "extra field"),
        ('{"tool":"light","args":{"room":"den","pct":40},"x":1}', "extra field"),
        ('{"tool":"light","args":{"room":"den","pct":41}}', "wrong value for pct"),
        ('{"tool":"light","args":{"room":"bed","pct":4}}', "wrong value for room and pct"),
    ],
)
def test_tool_calls(completion, feedback):
    domain = build_domain(ToolCallDomain(), name="d", seed=0)
    verdict = domain.verify(problem_with(LIGHT), completion)
    assert (verdict.passed, verdict.feedback) == (feedback == "", feedback)


def test_every_phrase_names_every_argument():
    for tool in TOOLS:
        for phrase in tool.phrases:
            assert all("{" + name + "}" in phrase for name in tool.properties), (tool.name, phrase)


def test_only_as_many_tools_as_asked_for():
    domain = build_domain(ToolCallDomain(tools=2), name="d", seed=0)
    assert {domain.problem("train", index).answer["tool"] for index in range(100)} == {"timer", "light"}
