"""The evaluator over a scripted engine: same problems, same seeds, failures counted and kept in their place."""

from __future__ import annotations

import ast

import numpy as np
import pytest
from pydantic import TypeAdapter

from cluster.errors import StageError
from cluster.messages import Problem, Verdict
from cluster.spec.domains import DomainSpec
from cluster.spec.job import EvaluationSpec
from rollout.domains import build_domain
from rollout.engines.base import EngineSampling
from rollout.engines.scripted import ScriptedEngine
from services.evaluation.evaluator import Evaluator, problem_seed, spaced_seed
from services.evaluation.verifier_version import statements, verifier_version

EOS = 99
SAMPLING = EngineSampling(temperature=1.0, top_p=1.0, max_tokens=4)


class Numbers:
    """Problem i asks for i; half credit for a wrong answer with the right parity."""

    def __init__(self, name: str, size: int | None = None):
        self.name = name
        self._size = size

    def size(self, split):
        return self._size

    def problem(self, split, index):
        assert split == "evaluation"
        return Problem(
            problem_id=f"{self.name}/{split}/{index}", domain=self.name, messages=({"role": "user", "content": str(index)},), solution=str(index)
        )


class Chat:
    def prompt_token_ids(self, messages):
        return np.array([int(messages[-1]["content"])], dtype=np.int32)

    def decode(self, token_ids):
        return " ".join(str(token) for token in token_ids if token != EOS)


class Verifiers:
    """Answers 0 1 0 1 ... by the text; problem 2 breaks the verifier."""

    def __init__(self):
        self.seen = []

    def verify(self, tasks):
        self.seen.append([(domain.name, problem.problem_id, text) for domain, problem, text in tasks])
        return [self._one(problem, text) for _, problem, text in tasks]

    @staticmethod
    def _one(problem, text):
        if problem.solution == "2":
            return Verdict(score=0.0, passed=False, error="ZeroDivisionError: division by zero")
        passed = text.split()[0] == problem.solution
        return Verdict(score=float(passed), passed=passed, feedback="" if passed else f"expected {problem.solution}")


class Recording(ScriptedEngine):
    """Says its prompt back, except for prompt 1; prompt 3 never stops."""

    def __init__(self):
        super().__init__(self._answer_of, eos_token_id=EOS)
        self.calls = []

    @staticmethod
    def _answer_of(prompt, seed):
        return {1: [7], 3: [3] * 10}.get(int(prompt[0]), [int(prompt[0])])

    def generate(self, requests, sampling):
        self.calls.append(requests)
        return super().generate(requests, sampling)


def _evaluator(seed: int = 5, sampling: EngineSampling = SAMPLING, **sizes: int | None):
    engine, verifiers = Recording(), Verifiers()
    domains = {name: Numbers(name, size) for name, size in (sizes or {"x": None, "y": 3}).items()}
    return Evaluator(engine, verifiers, Chat(), domains, dict.fromkeys(domains, 5), sampling, seed), engine, verifiers


def test_scores_by_domain_in_one_engine_call():
    evaluator, engine, verifiers = _evaluator()
    result = evaluator.score()
    assert list(result) == list(evaluator.names) == ["x", "y"]
    assert len(engine.calls) == len(verifiers.seen) == 1 and len(engine.calls[0]) == 5 + 3
    x, y = result["x"], result["y"]
    assert x.scores.tolist() == [1.0, 0.0, 0.0, 1.0, 1.0] and x.scores.dtype == np.float64
    assert y.scores.tolist() == [1.0, 0.0, 0.0]  # it has three problems only
    assert (x.mean, x.verifier_errors, x.truncation_rate) == (0.6, 1, 0.2)
    assert x.mean_tokens == pytest.approx((2 + 2 + 2 + 4 + 2) / 5)
    assert np.isfinite(x.scores).all()


def test_samples_show_what_was_asked_answered_and_said():
    sample = _evaluator()[0].score(["x"])["x"].samples[1]
    assert sample["prompt"] == "1" and sample["completion"] == "7" and sample["feedback"] == "expected 1" and sample["score"] == 0.0


def test_every_evaluation_asks_the_same_problems_with_the_same_seeds():
    evaluator, engine, _ = _evaluator()
    first = evaluator.score()
    second = evaluator.score(["y"])
    other, other_engine, _ = _evaluator()
    other.score()
    asked = [[(r.prompt_token_ids.tolist(), r.seed, r.num_completions) for r in call] for call in (*engine.calls, *other_engine.calls)]
    assert asked[0] == asked[2] and asked[0][5:] == asked[1]
    assert first["y"].problems_digest == second["y"].problems_digest
    assert asked[0][0][1] == problem_seed(5, "x", 0)
    assert len({seed for _, seed, _ in asked[0]}) == 8  # domains and problems have seeds of their own
    assert all(0 <= seed < 2**31 for _, seed, _ in asked[0])


def test_the_seed_of_a_problem_is_fixed_for_ever():
    assert problem_seed(7, "arithmetic", 3) == 1235558291


def test_another_sampling_seed_or_count_has_another_digest():
    base = _evaluator()[0].score(["x"])["x"].problems_digest
    hot = EngineSampling(temperature=0.5, top_p=1.0, max_tokens=4)
    others = [_evaluator(seed=6)[0], _evaluator(sampling=hot)[0], _evaluator(x=4)[0]]
    assert len({base, *(other.score(["x"])["x"].problems_digest for other in others)}) == 4


def test_unknown_and_empty_domains_are_refused():
    with pytest.raises(ValueError, match="'z'"):
        _evaluator()[0].score(["z"])
    with pytest.raises(ValueError, match="no evaluation problems"):
        _evaluator(x=0)[0].score()


def test_a_prompt_that_is_too_long_is_named():
    evaluator = _evaluator()[0]
    evaluator._max_prompt_tokens = 0
    with pytest.raises(StageError, match=r"x/evaluation/0 has \d+ tokens, an evaluation prompt may have 0") as raised:
        evaluator.score(["x"])
    assert raised.value.reason == "prompt_too_long"


def test_several_samples_of_a_problem_have_seeds_of_their_own_and_the_score_is_their_mean():
    engine = ScriptedEngine(lambda prompt, seed: [int(prompt[0]) if seed % 4 else 77], eos_token_id=EOS)
    evaluator = Evaluator(engine, Verifiers(), Chat(), {"x": Numbers("x")}, {"x": 4}, SAMPLING, 5, samples_per_problem=4)
    found = evaluator.score()["x"]
    assert found.scores.tolist() == [0.75, 0.75, 0.0, 0.75] and found.passed.tolist() == [3, 3, 0, 3]
    assert (found.samples_per_problem, found.verifier_errors, len(found.samples)) == (4, 4, 4)
    assert found.samples[1]["prompt"] == "1" and found.samples[1]["completion"] == "77"
    assert found.problems_digest != _evaluator()[0].score(["x"])["x"].problems_digest


def test_seeds_are_spaced_by_the_samples_and_one_sample_leaves_them_alone():
    seeds = [problem_seed(7, "x", index) for index in range(100)]
    assert [spaced_seed(seed, 1) for seed in seeds] == seeds
    assert all(spaced_seed(seed, 3) % 3 == 0 and spaced_seed(seed, 3) + 2 < 2**31 for seed in [*seeds, 2**31 - 1])


def test_another_verifier_has_another_digest_and_a_comment_none():
    first, comment, other = "def f(x):\n    return x\n", 'def f(x):\n    """Doc."""\n    return x  # why\n', "def f(x):\n    return not x\n"
    assert statements(ast.parse(first)) == statements(ast.parse(comment)) != statements(ast.parse(other))
    data = {"kind": "dataset", "path": "d.jsonl", "columns": {"problem": "q", "answer": "a"}}
    versions = {verifier_version(build_domain(_spec(domain), name="x", seed=0)) for domain in (
        {"kind": "arithmetic", "digits": 2},
        {"kind": "strings", "operation": "sort"},
        {**data, "verifier": {"kind": "exact_match"}},
        {**data, "verifier": {"kind": "math_equivalence"}},
    )}
    assert len(versions) == 4
    assert verifier_version(build_domain(_spec({"kind": "arithmetic", "digits": 3}), name="y", seed=1)) in versions


def _spec(domain):
    return TypeAdapter(DomainSpec).validate_python(domain)


@pytest.mark.parametrize(("fields", "match"), [({"pass_at": [2]}, "pass_at 2"), ({"samples_per_problem": 4, "pass_at": [2, 2]}, "more than once")])
def test_pass_at_needs_the_samples(fields, match):
    with pytest.raises(ValueError, match=match):
        EvaluationSpec.model_validate(fields)
    assert EvaluationSpec.model_validate({"samples_per_problem": 4, "pass_at": [1, 4]}).pass_at == (1, 4)


def test_first_completions_are_kept_and_can_be_sampled_again_without_judging():
    engine, verifiers = Recording(), Verifiers()
    evaluator = Evaluator(engine, verifiers, Chat(), {"x": Numbers("x")}, {"x": 5}, SAMPLING, 5, samples_per_problem=3)
    first = evaluator.score()["x"].first
    assert [ids.tolist() for ids in first.token_ids] == [[0, EOS], [7, EOS], [2, EOS], [3] * 4, [4, EOS]]
    assert first.cut.tolist() == [False, False, False, True, False]
    judged = len(verifiers.seen)
    again = evaluator.sample(["x"], 4)["x"]
    assert [ids.tolist() for ids in again.token_ids] == [ids.tolist() for ids in first.head(4).token_ids] and len(verifiers.seen) == judged
    # the seed of a problem's first sample, alone
    assert [(r.seed, r.num_completions) for r in engine.calls[1]] == [(r.seed, 1) for r in engine.calls[0][:4]]
    assert [prompt.tolist() for prompt in evaluator.prompts("x", 2)[0]] == [[0], [1]]
