"""Registers our backend with vLLM; named as a ``vllm.general_plugins`` entry point, so that engine processes have it too."""

from __future__ import annotations

VLLM_BACKENDS = {"shared_memory": "holdfast_snapshot", "nccl": "nccl", "ipc": "ipc"}
"""The job file's names to vLLM's."""


def vllm_backend(name: str) -> str:
    return VLLM_BACKENDS[name]


def register() -> None:
    """Safe to call more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

    for factory, class_name in ((WeightTransferEngineFactory, "SnapshotEngine"), (WeightTransferTrainerFactory, "SnapshotTrainer")):
        if "holdfast_snapshot" not in factory._registry:
            factory.register_engine("holdfast_snapshot", "cluster.transfer.backend", class_name)
