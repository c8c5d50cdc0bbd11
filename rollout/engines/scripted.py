"""An engine that says what a test wrote down; for unit tests alone.

Invariant: a completion depends on its prompt and its seed, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cluster.messages import Completion, GenerationRequest
from rollout.engines.base import EngineSampling


class ScriptedEngine:
    """``answer(prompt_token_ids, seed)`` gives a completion's ids without the end-of-sequence id; log-probabilities are constant.

    The support, where asked for, is the ids 0 to K - 1 at every position, in falling order from ``logprob``; with ``top_k``
    those from the k-th on are at -inf.
    """

    def __init__(self, answer: Callable[[np.ndarray, int], Sequence[int]], *, eos_token_id: int, logprob: float = -0.5):
        self._answer = answer
        self._eos = eos_token_id
        self._logprob = logprob
        self.policy_version = 0

    def generate(self, requests: Sequence[GenerationRequest], sampling: EngineSampling) -> list[tuple[Completion, ...]]:
        return [
            tuple(self._complete(request.prompt_token_ids, request.seed + child, sampling) for child in range(request.num_completions))
            for request in requests
        ]

    def _complete(self, prompt: np.ndarray, seed: int, sampling: EngineSampling) -> Completion:
        ids = np.asarray([*self._answer(prompt, seed), self._eos][: sampling.max_tokens], dtype=np.int32)
        support = (None, None) if sampling.support_k == 0 else self._support(len(ids), sampling)
        return Completion(
            token_ids=ids,
            logprobs=np.full(len(ids), self._logprob, dtype=np.float32),
            finish_reason="stop" if ids[-1] == self._eos else "length",
            policy_version=self.policy_version,
            support_ids=support[0],
            support_logprobs=support[1],
        )

    def _support(self, num_tokens: int, sampling: EngineSampling) -> tuple[np.ndarray, np.ndarray]:
        ids = np.tile(np.arange(sampling.support_k, dtype=np.int32), (num_tokens, 1))
        inside = ids < (sampling.top_k or sampling.support_k)
        return ids, np.where(inside, self._logprob - ids, -np.inf).astype(np.float32)

    def probe(self) -> None:
        """Always alive."""

    def drain(self) -> None:
        """Never half-open."""
