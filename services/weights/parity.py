"""Engine against learner, on the same tokens, after every publication.

A weight that did not arrive, a stale prepacked copy, a wrong dtype: all show as a difference of log-probabilities. In
float32 the two agree to about 1e-6 nats; the bound is 1e-3. In bfloat16 the bound is 1.2 times the difference of an engine
that has just been loaded with the same weights, taken at the first probe.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.errors import ParityError
from cluster.messages import GenerationRequest
from rollout.engines.base import EngineSampling

FLOAT32_BOUND_NATS = 1e-3
FRESH_ENGINE_FACTOR = 1.2
PROBE_SEED = 20_011


class ParityProbe:
    """``sample`` on the lead, ``Learner.sequence_logprobs`` on every rank, ``compare`` on the lead."""

    def __init__(
        self,
        workers: list[Any],
        prompts: list[np.ndarray],
        *,
        max_tokens: int = 16,
        temperature: float = 1.0,
        bound_nats: float | None = FLOAT32_BOUND_NATS,
    ):
        self._workers = workers
        self._prompts = prompts
        self._max_tokens = max_tokens
        self.temperature = temperature
        self.bound_nats = bound_nats
        """None: set by the first comparison, which must be of a freshly loaded engine."""
        self._engine_logprobs: list[np.ndarray] = []

    def sample(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Prompts and completions for the learner; what the engines said of them stays here."""
        import ray

        sampling = EngineSampling(temperature=self.temperature, top_p=1.0, max_tokens=self._max_tokens)
        requests = [GenerationRequest(prompt_token_ids=prompt, num_completions=1, seed=PROBE_SEED + i) for i, prompt in enumerate(self._prompts)]
        answers = ray.get([worker.generate.remote(requests, sampling) for worker in self._workers], timeout=120)
        completions = [item[0] for answer in answers for item in answer]
        self._engine_logprobs = [completion.logprobs for completion in completions]
        return self._prompts * len(self._workers), [completion.token_ids for completion in completions]

    def compare(self, learner_logprobs: list[np.ndarray]) -> float:
        """The largest absolute difference in nats. Raises ``ParityError`` above the bound."""
        worst = max_abs_difference(self._engine_logprobs, learner_logprobs)
        if self.bound_nats is None:
            self.bound_nats = FRESH_ENGINE_FACTOR * worst
        if not worst <= self.bound_nats:
            raise ParityError(
                f"engine and learner differ by {worst:.2e} nats on the same tokens after a publication; the bound is {self.bound_nats:.1e}",
                details={"max_abs_nats": worst, "bound_nats": self.bound_nats},
            )
        return worst


def max_abs_difference(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Over sequences and tokens; not a number where either side is not."""
    return float(max(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))) for a, b in zip(left, right, strict=True)))
