"""An engine that says what a test wrote down; for unit tests alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cluster.messages import Completion, GenerationRequest
from rollout.engines.base import EngineSampling


class ScriptedEngine:
    """``answer(prompt_token_ids, seed) -> token ids`` decides every completion; log-probabilities are constant."""

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
        return Completion(
            token_ids=ids,
            logprobs=np.full(len(ids), self._logprob, dtype=np.float32),
            finish_reason="stop" if ids[-1] == self._eos else "length",
            policy_version=self.policy_version,
        )
