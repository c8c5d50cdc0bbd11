"""Real engines, a stand-in learner of the same model, and a publisher between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cluster.messages import GenerationRequest
from rollout.engines.base import EngineSampling
from services.weights.parity import ParityProbe, ParitySample, max_abs_difference
from services.weights.publisher import Publisher
from tests.tiny_models import DirectClient, EngineProcess, PlainLearner, tiny_engine

PROMPTS = [np.random.default_rng(3).integers(3, 100, 6 + 9 * i).astype(np.int32) for i in range(6)]


@dataclass
class Pair:
    """One engine and one learner of the same shape."""

    engine: EngineProcess
    learner: PlainLearner
    client: DirectClient
    folder: Path
    tied: bool

    def publisher(self, learner=None) -> Publisher:
        return Publisher(
            learner or self.learner, rank=0, world_size=1, workers=[], backend="shared_memory", folder=self.folder, client=self.client
        )

    def sample(self, probe: ParityProbe | None = None) -> ParitySample:
        requests = [GenerationRequest(prompt_token_ids=prompt, num_completions=1, seed=i) for i, prompt in enumerate(PROMPTS)]
        answer = self.engine.generate(requests, EngineSampling(temperature=1.0, top_p=1.0, max_tokens=16))
        return (probe or ParityProbe([], PROMPTS)).collect([answer])

    def difference(self) -> float:
        """Largest difference between engine and learner, in nats."""
        sample = self.sample()
        return max_abs_difference(sample.engine_logprobs, self.score(sample))

    def score(self, sample: ParitySample) -> list[np.ndarray]:
        return self.learner.sequence_logprobs(sample.prompts, sample.completions, temperature=sample.temperature)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """The engine holds this learner's perturbed weights as publication 1."""
    engine = tiny_engine(tied=request.param)
    engine.drain()
    learner = PlainLearner(tied=request.param)
    learner.perturb(seed=11)
    pair = Pair(engine, learner, DirectClient(engine), tmp_path, request.param)
    pair.publisher().publish(1)
    return pair
