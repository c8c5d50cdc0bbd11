"""All rollout workers of an attempt as one engine: a step's requests are split over them, and their order is kept.

Invariant: the result does not depend on the number of workers, for every completion has its own seed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from cluster.errors import HoldfastError
from cluster.messages import Completion, GenerationRequest
from rollout.engines.base import EngineSampling

GENERATE_DEADLINE_S = 900.0


class WorkerLostError(HoldfastError):
    """A rollout worker died, did not answer in time, or its engine raised: it must be rebuilt."""

    reason = "rollout_worker_lost"


class RolloutPool:
    """Around the actor handles; may be built in any process that has them."""

    def __init__(self, workers: Sequence[Any], *, deadline_s: float = GENERATE_DEADLINE_S):
        self.workers = list(workers)
        self._deadline_s = deadline_s

    @staticmethod
    def create(
        num_workers: int,
        *,
        options: dict[str, Any],
        placement_group: Any = None,
        first_bundle: int = 0,
        num_cpus: float = 1.0,
        num_gpus: float = 0.0,
    ) -> RolloutPool:
        """Start the workers, in bundles ``first_bundle`` and following; they load while the caller goes on.

        ``options`` are ``VllmEngine``'s arguments; its threads are set here, whatever CPUs Ray counts for the actor.
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        from rollout.engines.actor import RolloutWorker, worker_environment

        actor = ray.remote(RolloutWorker)
        environment = {"env_vars": worker_environment(options.get("threads", 1))}
        workers = []
        for index in range(num_workers):
            strategy = "DEFAULT"
            if placement_group is not None:
                strategy = PlacementGroupSchedulingStrategy(placement_group, placement_group_bundle_index=first_bundle + index)
            placed = actor.options(num_cpus=num_cpus, num_gpus=num_gpus, scheduling_strategy=strategy, runtime_env=environment)
            workers.append(placed.remote(options))
        return RolloutPool(workers)

    def wait_until_ready(self, deadline_s: float) -> list[dict[str, Any]]:
        """Every worker has generated one token and says what it is. Raises ``WorkerLostError``."""
        return self._collect([worker.probe.remote() for worker in self.workers], deadline_s)

    def generate(self, requests: Sequence[GenerationRequest], sampling: EngineSampling) -> list[tuple[Completion, ...]]:
        """One tuple of completions per request, in the order of the requests.

        Raises ``WorkerLostError``, and a worker's own ``HoldfastError`` as it is.
        """
        shares = split_requests(requests, sampling.max_tokens, len(self.workers))
        busy = [(worker, share) for worker, share in zip(self.workers, shares, strict=True) if share]
        pending = [worker.generate.remote([requests[index] for index in share], sampling) for worker, share in busy]
        results: list[tuple[Completion, ...]] = [()] * len(requests)
        for (_, share), completions in zip(busy, self._collect(pending, self._deadline_s), strict=True):
            for index, completion in zip(share, completions, strict=True):
                results[index] = completion
        return results

    @staticmethod
    def _collect(references: list[Any], deadline_s: float) -> list[Any]:
        """Results in order; the first worker that fails ends the wait, whatever the others do."""
        import ray

        deadline = time.monotonic() + deadline_s
        results: dict[Any, Any] = {}
        waiting = list(references)
        try:
            while waiting:
                ready, waiting = ray.wait(waiting, timeout=max(deadline - time.monotonic(), 0.0))
                if not ready:
                    raise WorkerLostError(f"{len(waiting)} of {len(references)} rollout workers did not answer within {deadline_s:g} s")
                results |= {reference: ray.get(reference) for reference in ready}
        except ray.exceptions.RayActorError as error:
            raise WorkerLostError(f"a rollout worker died: {str(error).strip().splitlines()[0]}") from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HoldfastError):
                raise error.cause from error
            raise WorkerLostError(f"a rollout worker's engine raised {error.cause!r}; it must be rebuilt") from error
        return [results[reference] for reference in references]


def split_requests(requests: Sequence[GenerationRequest], max_tokens: int, num_workers: int) -> list[list[int]]:
    """Indices of the requests for each worker: the costliest first, each to the worker with least to do.

    A request's cost is its prompt's tokens and those it may generate; a group stays together and shares its prefix.
    """
    costs = [len(request.prompt_token_ids) + request.num_completions * max_tokens for request in requests]
    shares: list[list[int]] = [[] for _ in range(num_workers)]
    loads = [0] * num_workers
    for index in sorted(range(len(requests)), key=lambda index: -costs[index]):
        worker = loads.index(min(loads))
        shares[worker].append(index)
        loads[worker] += costs[index]
    return [sorted(share) for share in shares]
