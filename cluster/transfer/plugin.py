"""Registers our backend with vLLM.

Named as a ``vllm.general_plugins`` entry point, so that an engine's own processes know the backend as well; in-process
engines and the learner call ``register`` themselves. Nothing of vLLM is loaded before that.
"""

from __future__ import annotations

BACKEND = "holdfast_snapshot"
VLLM_BACKENDS = {"shared_memory": BACKEND, "nccl": "nccl", "ipc": "ipc"}
"""The job file's names to vLLM's."""
_MODULE = "cluster.transfer.backend"


def vllm_backend(name: str) -> str:
    """vLLM's name of a job file's ``weight_transfer``. Raises ValueError for a name that is neither."""
    if name in VLLM_BACKENDS:
        return VLLM_BACKENDS[name]
    if name in VLLM_BACKENDS.values():
        return name
    raise ValueError(f"weight transfer is {name!r}; allowed are {', '.join(VLLM_BACKENDS)}")


def register() -> None:
    """Put both halves into vLLM's factories; safe to call more than once."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

    halves = ((WeightTransferEngineFactory, "SnapshotEngine"), (WeightTransferTrainerFactory, "SnapshotTrainer"))
    for factory, class_name in halves:
        if BACKEND not in factory._registry:
            factory.register_engine(BACKEND, _MODULE, class_name)
