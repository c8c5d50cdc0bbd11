"""A rollout worker: one engine in a Ray actor. Thin; the logic is the engine's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from cluster.messages import Completion, GenerationRequest
from rollout.engines.base import EngineSampling


class RolloutWorker:
    """Methods mirror the engine's; Ray calls them one at a time."""

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

    def finish_weight_update(self) -> None:
        self._engine.finish_weight_update()

    def update_weight_version(self, new_version: str) -> None:
        self._engine.update_weight_version(new_version)

    def drain(self) -> None:
        self._engine.drain()

    def probe(self) -> dict[str, Any]:
        self._engine.probe()
        return {"pid": os.getpid(), "policy_version": self._engine.policy_version}
