"""A domain without end, an engine and a verifier that a test can predict, for tests of sources."""

from __future__ import annotations

import numpy as np

from cluster.messages import Completion, Problem, Verdict


class Numbers:
    def __init__(self, name, size=None, prompt="what is {}?"):
        self.name, self._size, self._prompt = name, size, prompt

    def size(self, split):
        return self._size

    def problem(self, split, index):
        assert split == "train"
        if self._size is not None and index >= self._size:
            raise IndexError(f"there are {self._size} problems")
        return Problem(
            problem_id=f"{self.name}/{split}/{index}",
            domain=self.name,
            messages=({"role": "user", "content": self._prompt.format(index)},),
            solution=f"the {index}",
        )


class Generator:
    """Answers every request with its own seeds, as text; with a support, random numbers that are a function of the seed."""

    def __init__(self, chat, version=3, short=0):
        self.chat, self.version, self.short, self.calls = chat, version, short, []

    def __call__(self, requests, sampling):
        self.calls.append((list(requests), sampling))
        return [
            tuple(self._one(request.seed + j, sampling) for j in range(request.num_completions - self.short))
            for request in requests
        ]

    def _one(self, seed, sampling):
        whole = self.chat.completion_token_ids(str(seed))
        ids = whole[: sampling.max_tokens]
        random, shape = np.random.default_rng(seed), (len(ids), sampling.support_k)
        has_support = sampling.support_k > 0
        return Completion(
            token_ids=ids,
            logprobs=np.full(len(ids), -0.5, np.float32),
            finish_reason="stop" if len(ids) == len(whole) else "length",
            policy_version=self.version,
            support_ids=random.integers(0, 300, shape).astype(np.int32) if has_support else None,
            support_logprobs=-np.sort(random.exponential(size=shape), axis=1).astype(np.float32) if has_support else None,
        )


class Judge:
    """``score(problem_id, child)``; None where the verifier fails. Keeps the problems of every call."""

    def __init__(self, score=lambda problem_id, child: 1.0):
        self._score, self.calls = score, []

    def __call__(self, groups):
        self.calls.append([group.problem.problem_id for group in groups])
        return [[self._verdict(group, child) for child in range(len(group.rollouts))] for group in groups]

    def _verdict(self, group, child):
        score = self._score(group.problem.problem_id, child)
        error = "the verifier failed" if score is None else None
        return Verdict(score=score or 0.0, passed=score == 1.0, error=error, details={"text": group.rollouts[child].text})
