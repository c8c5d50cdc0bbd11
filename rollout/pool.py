"""All rollout workers of an attempt as one engine: a step's requests are split over them, and their order is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.errors import HoldfastError
from cluster.messages import Completion, GenerationRequest
from rollout.engines.actor import RolloutWorker
from rollout.engines.base import EngineSampling

GENERATE_DEADLINE_S = 900.0


class RolloutWorkerLost(HoldfastError):
    """A rollout worker died or did not answer in time; the attempt ends and the next one starts new workers."""

    reason = "rollout_worker_lost"


class RolloutPool:
    """Around the actor handles; may be built in any process that has them."""

    def __init__(self, workers: list[Any]):
        self.workers = workers

    @staticmethod
    def create(num_workers: int, *, options: dict[str, Any], placement_group: Any, first_bundle: int = 0, num_gpus: float = 0.0) -> RolloutPool:
        """Start the workers in bundles ``first_bundle`` and following; they load while the caller goes on."""
        threads = str(options["threads"])
        actor = ray.remote(RolloutWorker)
        workers = [
            actor.options(
                num_cpus=1,
                num_gpus=num_gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group, placement_group_bundle_index=first_bundle + index),
                runtime_env={"env_vars": {"OMP_NUM_THREADS": threads, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}},
            ).remote(options)
            for index in range(num_workers)
        ]
        return RolloutPool(workers)

    def wait_until_ready(self, deadline_s: float) -> list[dict[str, Any]]:
        """Every worker has generated one token. Raises ``RolloutWorkerLost``."""
        return self._collect([worker.probe.remote() for worker in self.workers], deadline_s)

    def generate(self, requests: Sequence[GenerationRequest], sampling: EngineSampling) -> list[tuple[Completion, ...]]:
        """One tuple of completions per request, in the order of the requests."""
        shares = [list(range(start, len(requests), len(self.workers))) for start in range(len(self.workers))]
        pending = [
            worker.generate.remote([requests[index] for index in share], sampling)
            for worker, share in zip(self.workers, shares, strict=True)
        ]
        results: list[tuple[Completion, ...]] = [()] * len(requests)
        for share, completions in zip(shares, self._collect(pending, GENERATE_DEADLINE_S), strict=True):
            for index, completion in zip(share, completions, strict=True):
                results[index] = completion
        return results

    @staticmethod
    def _collect(references: list[Any], deadline_s: float) -> list[Any]:
        try:
            return ray.get(references, timeout=deadline_s)
        except ray.exceptions.GetTimeoutError as error:
            raise RolloutWorkerLost(f"a rollout worker did not answer within {deadline_s:g} s") from error
        except ray.exceptions.RayActorError as error:
            raise RolloutWorkerLost(f"a rollout worker died: {str(error).strip().splitlines()[0]}") from error
