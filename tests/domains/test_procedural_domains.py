"""The procedural domains: determinism, disjoint splits, distinct evaluation problems, and solutions that pass."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest

from cluster.errors import StageError
from cluster.spec.domains import ArithmeticDomain, StringsDomain, ToolCallDomain
from rollout.domains import build_domain
from rollout.domains.base import split_of

SPECS = {
    "sums": ArithmeticDomain(),
    "all_operations": ArithmeticDomain(digits=3, operations=("+", "-", "*")),
    "sort": StringsDomain(),
    "reverse": StringsDomain(operation="reverse", length=(3, 9)),
    "uppercase": StringsDomain(operation="uppercase", length=(8, 8)),
    "dedupe": StringsDomain(operation="dedupe", length=(5, 20)),
    "tool_call": ToolCallDomain(),
    "eight_tools": ToolCallDomain(tools=8, max_value=9999),
}
every_spec = pytest.mark.parametrize("kind", SPECS)


def questions(kind: str, split: str, seed: int, count: int) -> list[str]:
    domain = build_domain(SPECS[kind], name="d", seed=seed)
    return [domain.problem(split, index).messages[-1]["content"] for index in range(count)]


@every_spec
def test_a_problem_depends_on_seed_split_and_index_alone(kind):
    domain = build_domain(SPECS[kind], name="d", seed=3)
    backwards = [domain.problem(split, index) for split in ("evaluation", "train") for index in (40, 7, 0)]
    again = build_domain(SPECS[kind], name="d", seed=3)
    assert backwards == [again.problem(split, index) for split in ("evaluation", "train") for index in (40, 7, 0)]
    assert questions(kind, "train", 3, 50) != questions(kind, "train", 4, 50)
    assert questions(kind, "evaluation", 3, 50) != questions(kind, "evaluation", 4, 50)


@every_spec
def test_splits_are_disjoint_over_all_seeds(kind):
    training = {question for seed in range(4) for question in questions(kind, "train", seed, 300)}
    held_out = {question for seed in range(4) for question in questions(kind, "evaluation", seed, 300)}
    assert not training & held_out


@every_spec
def test_first_evaluation_problems_are_distinct(kind):
    assert max(Counter(questions(kind, "evaluation", 5, 512)).values()) == 1


@every_spec
def test_solutions_pass_their_own_verifier(kind):
    domain = build_domain(SPECS[kind], name="d", seed=11)
    for split in ("train", "evaluation"):
        for index in range(200):
            problem = domain.problem(split, index)
            verdict = domain.verify(problem, problem.solution)
            assert (verdict.passed, verdict.score, verdict.feedback) == (True, 1.0, ""), problem
            assert problem.problem_id == f"d/{split}/{index}"


def test_one_content_in_five_is_held_out():
    held_out = sum(split_of(str(number)) == "evaluation" for number in range(10_000))
    assert 1800 < held_out < 2200


def test_a_small_domain_repeats_its_evaluation_problems_in_order():
    domain = build_domain(StringsDomain(operation="uppercase", length=(1, 1)), name="d", seed=0)
    asked = [domain.problem("evaluation", index).answer for index in range(60)]
    distinct = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if split_of(letter.lower()) == "evaluation"]
    size = len(distinct)
    assert sorted(asked[:size]) == distinct
    assert asked[size : 2 * size] == asked[:size]


def test_a_domain_whose_split_is_empty_says_so(monkeypatch):
    monkeypatch.setattr("rollout.domains.base.split_of", lambda content: "train")
    with pytest.raises(StageError, match="evaluation split has no problem") as raised:
        build_domain(ArithmeticDomain(digits=1), name="d", seed=0).problem("evaluation", 0)
    assert raised.value.reason == "no_problems"


def test_a_negative_index_is_refused():
    with pytest.raises(IndexError):
        build_domain(ArithmeticDomain(), name="d", seed=0).problem("train", -1)


@every_spec
def test_pickled_domains_stay_small_and_equal(kind):
    domain = build_domain(SPECS[kind], name="d", seed=2)
    problem = domain.problem("evaluation", 511)
    pickled = pickle.dumps(domain)
    assert len(pickled) < 4000, "what was drawn travels to every verifier process"
    assert pickle.loads(pickled).problem("evaluation", 511) == problem
