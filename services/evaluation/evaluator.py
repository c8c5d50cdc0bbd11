"""Scores of the policy that the engines hold, on fixed problems with fixed sampling seeds.

Invariant: two evaluations of one job ask the same problems with the same seeds, so their scores are paired problem by
problem; ``problems_digest`` is equal for evaluations that may be compared, and for no others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import StageError
from cluster.messages import Completion, GenerationRequest, Problem, Verdict
from services.evaluation.verifier_version import verifier_version

NUM_SAMPLES = 8
"""Completions kept per domain for people to read."""
SEED_BITS = 31


@dataclass(frozen=True, slots=True)
class FirstCompletions:
    """The first completion of each problem, in the problems' order."""

    token_ids: tuple[np.ndarray, ...]
    """int32, one for each problem"""
    cut: np.ndarray
    """bool [N]: ended at the token limit"""

    def head(self, count: int) -> FirstCompletions:
        return FirstCompletions(self.token_ids[:count], self.cut[:count])


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainScores:
    """One cell of the score matrix."""

    domain: str
    scores: np.ndarray
    """float64 [N], problem by problem, the mean over its samples; a completion whose verifier failed counts 0 in its place."""
    mean: float
    truncation_rate: float
    """Share of completions that ended at the token limit."""
    mean_tokens: float
    verifier_errors: int
    """How many of the zeros are the verifier's failures."""
    problems_digest: str
    samples: list[dict[str, Any]]
    """The first completion of the first problems."""
    samples_per_problem: int
    passed: np.ndarray
    """int64 [N]: how many of a problem's samples passed"""
    first: FirstCompletions


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The problems of one domain, ready to be asked again and again."""

    domain: Any
    problems: tuple[Problem, ...]
    requests: tuple[GenerationRequest, ...]
    digest: str


def problem_seed(job_seed: int, domain: str, index: int) -> int:
    """The sampling seed of one problem: the same on every machine and in every process."""
    digest = hashlib.blake2b(f"evaluation/{job_seed}/{domain}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (1 << SEED_BITS)


def spaced_seed(seed: int, samples: int) -> int:
    """A seed with room for ``samples`` children below 2**31: seeds of two problems are equal or share no child.

    With one sample it is the seed itself.
    """
    seed %= (1 << SEED_BITS) // samples * samples
    return seed - seed % samples


class Evaluator:
    """``pool`` generates, ``verifiers`` judge, ``chat`` makes prompts; ``problems`` says how many of each domain.

    A domain with fewer problems in its evaluation split is scored on all of them. Raises ValueError for one with none.
    """

    def __init__(
        self,
        pool: Any,
        verifiers: Any,
        chat: Any,
        domains: Mapping[str, Any],
        problems: Mapping[str, int],
        sampling: Any,
        seed: int,
        *,
        max_prompt_tokens: int | None = None,
        samples_per_problem: int = 1,
    ):
        if samples_per_problem < 1:
            raise ValueError(f"samples_per_problem is {samples_per_problem}; it must be 1 or more")
        self._pool = pool
        self._verifiers = verifiers
        self._chat = chat
        self._domains = dict(domains)
        self._num_problems = dict(problems)
        self._sampling = sampling
        self._seed = seed
        self._max_prompt_tokens = max_prompt_tokens
        self._samples_per_problem = samples_per_problem
        self._suites: dict[str, Suite] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every domain, in the order in which they were given."""
        return tuple(self._domains)

    def score(self, names: Sequence[str] | None = None) -> dict[str, DomainScores]:
        """Score some domains, or all: one engine call for all of them, so that the batch stays full to its end."""
        suites = {name: self._suite(name) for name in (self.names if names is None else names)}
        completions = iter(self._pool.generate([request for suite in suites.values() for request in suite.requests], self._sampling))
        answered = {name: [one for _ in suite.requests for one in next(completions)] for name, suite in suites.items()}
        texts = {name: [self._chat.decode(completion.token_ids) for completion in of_domain] for name, of_domain in answered.items()}
        tasks = [
            (suite.domain, problem, text)
            for name, suite in suites.items()
            for problem, text in zip(self._repeated(suite.problems), texts[name], strict=True)
        ]
        verdicts = iter(self._verifiers.verify(tasks))
        return {
            name: _domain_scores(name, suite, answered[name], texts[name], [next(verdicts) for _ in texts[name]])
            for name, suite in suites.items()
        }

    def digest(self, name: str) -> str:
        """What ``DomainScores.problems_digest`` would be, without scoring."""
        return self._suite(name).digest

    def prompts(self, name: str, count: int) -> tuple[list[np.ndarray], str]:
        """Token ids of a domain's first ``count`` prompts, at most as many as are evaluated, and the problems' digest."""
        suite = self._suite(name)
        return [request.prompt_token_ids for request in suite.requests[:count]], suite.digest

    def sample(self, names: Sequence[str], count: int) -> dict[str, FirstCompletions]:
        """What ``score`` would sample first for the first ``count`` problems of each domain, without judging it."""
        requests = {name: self._suite(name).requests[:count] for name in names}
        alone = [dataclasses.replace(request, num_completions=1) for of_domain in requests.values() for request in of_domain]
        answers = iter(self._pool.generate(alone, self._sampling) if alone else ())
        return {name: _first([next(answers)[0] for _ in of_domain]) for name, of_domain in requests.items()}

    def _repeated(self, problems: Sequence[Problem]) -> list[Problem]:
        """One entry for every completion."""
        return [problem for problem in problems for _ in range(self._samples_per_problem)]

    def _suite(self, name: str) -> Suite:
        if name not in self._suites:
            if name not in self._domains:
                raise ValueError(f"domain {name!r} is not evaluated in this job; it has {list(self.names)}")
            self._suites[name] = self._build_suite(name)
        return self._suites[name]

    def _build_suite(self, name: str) -> Suite:
        domain = self._domains[name]
        size = domain.size("evaluation")
        count = self._num_problems[name] if size is None else min(self._num_problems[name], size)
        if count < 1:
            raise ValueError(f"domain {name!r} has no evaluation problems")
        problems = tuple(domain.problem("evaluation", index) for index in range(count))
        requests = tuple(
            GenerationRequest(
                prompt_token_ids=self._chat.prompt_token_ids(problem.messages),
                num_completions=self._samples_per_problem,
                seed=spaced_seed(problem_seed(self._seed, name, index), self._samples_per_problem),
            )
            for index, problem in enumerate(problems)
        )
        self._check_lengths(problems, requests)
        return Suite(domain=domain, problems=problems, requests=requests, digest=self._digest(domain, problems, requests))

    def _check_lengths(self, problems: tuple[Problem, ...], requests: tuple[GenerationRequest, ...]) -> None:
        for problem, request in zip(problems, requests, strict=True):
            length = len(request.prompt_token_ids)
            if self._max_prompt_tokens is not None and length > self._max_prompt_tokens:
                raise StageError(
                    f"the prompt of {problem.problem_id} has {length} tokens, an evaluation prompt may have {self._max_prompt_tokens} "
                    "(the largest max_prompt_tokens of the stages)",
                    reason="prompt_too_long",
                )

    def _digest(self, domain: Any, problems: tuple[Problem, ...], requests: tuple[GenerationRequest, ...]) -> str:
        """Of everything that two comparable evaluations share: prompts, what is compared with, seeds, sampling, verifier."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(json.dumps([verifier_version(domain), self._samples_per_problem]).encode())
        digest.update(json.dumps(dataclasses.asdict(self._sampling), sort_keys=True).encode())
        for problem, request in zip(problems, requests, strict=True):
            content = [problem.problem_id, problem.messages, problem.solution, problem.answer, request.seed]
            digest.update(json.dumps(content, sort_keys=True, default=str).encode())
            digest.update(np.ascontiguousarray(request.prompt_token_ids, dtype=np.int32).tobytes())
        return digest.hexdigest()


def _first(completions: Sequence[Completion]) -> FirstCompletions:
    ids = tuple(np.asarray(completion.token_ids, dtype=np.int32) for completion in completions)
    return FirstCompletions(ids, np.array([completion.finish_reason == "length" for completion in completions], dtype=bool))


def _domain_scores(
    name: str, suite: Suite, completions: list[Completion], texts: list[str], verdicts: list[Verdict]
) -> DomainScores:
    samples = len(completions) // len(suite.problems)
    scores = np.array([0.0 if verdict.error is not None else verdict.score for verdict in verdicts], dtype=np.float64)
    passed = np.array([verdict.error is None and verdict.passed for verdict in verdicts], dtype=np.int64)
    scores, passed = scores.reshape(-1, samples).mean(axis=1), passed.reshape(-1, samples).sum(axis=1)
    return DomainScores(
        domain=name,
        scores=scores,
        mean=float(scores.mean()),
        truncation_rate=float(np.mean([completion.finish_reason == "length" for completion in completions])),
        mean_tokens=float(np.mean([len(completion.token_ids) for completion in completions])),
        verifier_errors=sum(verdict.error is not None for verdict in verdicts),
        problems_digest=suite.digest,
        samples_per_problem=samples,
        passed=passed,
        first=_first(completions[::samples]),
        samples=[
            {
                "problem_id": problem.problem_id,
                "prompt": problem.messages[-1]["content"],
                "completion": text,
                "score": verdict.score,
                "feedback": verdict.feedback,
                "error": verdict.error or "",
                "finish_reason": completion.finish_reason,
            }
            for problem, completion, text, verdict in list(
                zip(suite.problems, completions[::samples], texts[::samples], verdicts[::samples], strict=True)
            )[:NUM_SAMPLES]
        ],
    )
