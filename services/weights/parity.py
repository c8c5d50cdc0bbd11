"""Engine against learner, on the same tokens, after every publication.

A weight that did not arrive, a stale prepacked copy, a wrong dtype: all show as a difference of log-probabilities. In
float32 the two agree to about 1e-6 nats, and the bound is 1e-3. In bfloat16 the bound is 1.2 times the difference of an
engine that has just been loaded with the same weights: measured with ``calibrate`` before the first update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cluster.errors import HoldfastError, ParityError
from cluster.messages import GenerationRequest
from rollout.engines.base import EngineSampling

FLOAT32_BOUND_NATS = 1e-3
FRESH_ENGINE_FACTOR = 1.2
SAMPLE_DEADLINE_S = 120.0
_SEED = 20_011


class ParitySample(NamedTuple):
    """N sequences, worker by worker, prompt by prompt; what the learner must score, and what the engines said."""

    prompts: list[np.ndarray]
    """N times int32 [P]"""
    completions: list[np.ndarray]
    """N times int32 [T]"""
    engine_logprobs: list[np.ndarray]
    """N times float32 [T], at ``temperature``"""
    temperature: float
    policy_versions: list[int]


class ParityProbe:
    """``sample`` on the lead, ``Learner.sequence_logprobs`` on every rank, ``compare`` on the lead."""

    def __init__(
        self,
        pool_workers: Sequence[Any],
        prompts: list[np.ndarray],
        *,
        max_tokens: int = 16,
        bound_nats: float = FLOAT32_BOUND_NATS,
        temperature: float = 1.0,
    ):
        self._workers = list(pool_workers)
        self._prompts = [np.asarray(prompt, dtype=np.int32) for prompt in prompts]
        self._max_tokens = max_tokens
        self._temperature = temperature
        self.bound_nats = bound_nats
        self.max_abs_nats = 0.0
        """The largest difference of this probe's life."""
        self._fresh_nats = 0.0

    def sample(self, round_index: int = 0) -> ParitySample:
        """Sampled with fixed seeds from every worker, all workers the same; another ``round_index``, other seeds."""
        import ray

        sampling = EngineSampling(temperature=self._temperature, top_p=1.0, max_tokens=self._max_tokens)
        seed = _SEED + round_index * len(self._prompts)
        requests = [
            GenerationRequest(prompt_token_ids=prompt, num_completions=1, seed=seed + index) for index, prompt in enumerate(self._prompts)
        ]
        try:
            answers = ray.get([worker.generate.remote(requests, sampling) for worker in self._workers], timeout=SAMPLE_DEADLINE_S)
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as error:
            raise HoldfastError(f"a rollout worker did not answer the parity probe: {error}", reason="rollout_worker_lost") from error
        return self.collect(answers)

    def collect(self, answers: Sequence[Sequence[tuple]]) -> ParitySample:
        """Flatten one ``Engine.generate`` result per worker."""
        completions = [item[0] for answer in answers for item in answer]
        return ParitySample(
            prompts=self._prompts * len(answers),
            completions=[completion.token_ids for completion in completions],
            engine_logprobs=[completion.logprobs for completion in completions],
            temperature=self._temperature,
            policy_versions=[completion.policy_version for completion in completions],
        )

    def compare(self, engine: ParitySample, learner_logprobs: Sequence[np.ndarray]) -> float:
        """The largest absolute difference in nats. Raises ``ParityError`` above the bound, or where one is not a number."""
        worst = max_abs_difference(engine.engine_logprobs, learner_logprobs)
        self.max_abs_nats = max(self.max_abs_nats, worst) if worst == worst else worst
        if not worst <= self.bound_nats:
            raise ParityError(
                f"engine and learner differ by {worst:.2e} nats on the same tokens after a publication; "
                f"the bound is {self.bound_nats:.1e}",
                details={"max_abs_nats": worst, "bound_nats": self.bound_nats, "policy_versions": sorted(set(engine.policy_versions))},
            )
        return worst

    def calibrate(self, engine: ParitySample, learner_logprobs: Sequence[np.ndarray]) -> float:
        """For bfloat16: set the bound from an engine freshly loaded with the learner's weights, and return it.

        Call it before the first update, over several rounds of ``sample``; the largest difference counts.
        """
        self._fresh_nats = max(self._fresh_nats, max_abs_difference(engine.engine_logprobs, learner_logprobs))
        self.bound_nats = FRESH_ENGINE_FACTOR * self._fresh_nats
        return self.bound_nats


def max_abs_difference(left: Sequence[np.ndarray], right: Sequence[np.ndarray]) -> float:
    """Over all sequences and tokens; not a number where either side is not. Raises ValueError if shapes differ."""
    differences = []
    for engine, learner in zip(left, right, strict=True):
        if engine.shape != learner.shape:
            raise ValueError(f"log-probabilities of shapes {engine.shape} and {learner.shape} are not of the same tokens")
        differences.append(np.abs(engine.astype(np.float64) - learner.astype(np.float64)))
    return float(np.max(np.concatenate(differences)))
