"""A rollout worker: one engine in a Ray actor. Thin; the logic is the engine's.

Invariant: Ray calls the methods one at a time, so nothing is sampled during a weight update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.messages import Completion, GenerationRequest
from rollout.engines.base import EngineSampling


class RolloutWorker:
    """``options`` are ``VllmEngine``'s arguments."""

    def __init__(self, options: dict[str, Any]):
        from rollout.engines.vllm import VllmEngine

        self._engine = VllmEngine(**options)

    def generate(self, requests: Sequence[GenerationRequest], sampling: EngineSampling) -> list[tuple[Completion, ...]]:
        return self._engine.generate(requests, sampling)

    def init_weight_transfer_engine(self, init_info: Any) -> None:
        self._engine.init_weight_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._engine.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        self._engine.update_weights(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._engine.finish_weight_update(weight_version)

    def update_weight_version(self, new_version: str) -> None:
        self._engine.update_weight_version(new_version)

    def drain(self) -> None:
        self._engine.drain()

    def probe(self) -> dict[str, Any]:
        """One token from the engine, then what the worker is."""
        self._engine.probe()
        return self._engine.info()

    def info(self) -> dict[str, Any]:
        return self._engine.info()


def worker_environment(threads: int) -> dict[str, str]:
    """What must stand in the actor's environment before torch loads; Ray would give an actor of one CPU one thread.

    Threads that wait must sleep: spinning at barriers next to other busy processes made an engine ten times slower.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
