"""Opens vLLM's trainer half of a weight transfer on a learner rank, and sends through it under a deadline.

Invariant: every rank opens and sends, rank 0 alone talks to engines. NCCL has no timeout of its own, so a send runs on a
daemon thread and the caller waits a fixed time for it.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

from cluster.errors import HoldfastError, WeightTransferError
from cluster.transfer.plugin import BACKEND, register, vllm_backend

SEND_DEADLINE_S = 300.0


def open_trainer(backend: str, *, client: Any, source: Any, rank: int, folder: Path) -> Any:
    """The rendezvous with the engines; ``backend`` as in the job file. Returns vLLM's trainer engine."""
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    register()
    info = _init_info(vllm_backend(backend), client=client, rank=rank, folder=folder)
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)


def _init_info(backend: str, *, client: Any, rank: int, folder: Path) -> Any:
    if backend == BACKEND:
        from cluster.transfer.backend import SnapshotTrainerInitInfo

        return SnapshotTrainerInitInfo(folder=str(folder), rank=rank)
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(packed=True, rank=rank)
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    address, port = _rendezvous()
    return NCCLTrainerInitInfo(
        master_address=address, master_port=port, world_size=1 + client.num_ranks, packed=True, rank=rank
    )


def _rendezvous() -> tuple[str, int]:
    """An address of this node that engines on other nodes reach, and a port that is free now."""
    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def torch_dtype(name: str) -> Any:
    """``float32`` and the like as torch's dtype, with or without the module's name in front."""
    import torch

    return getattr(torch, name.removeprefix("torch."))


def send(trainer: Any, *, device: str, deadline_s: float = SEND_DEADLINE_S) -> None:
    """``trainer.send_weights()``. Raises what it raises, or ``WeightTransferError`` at the deadline.

    After a deadline the trainer cannot be used again: its thread may sit in a collective for ever.
    """
    if device == "cpu":
        trainer.send_weights()
        return
    outcome: list[BaseException | None] = []
    thread = threading.Thread(target=_run, args=(trainer, _current_device(), outcome), daemon=True, name="weight-transfer")
    thread.start()
    thread.join(deadline_s)
    if not outcome:
        raise WeightTransferError(f"the weights were not sent within {deadline_s:g} s; engines and learner wait for each other")
    error = outcome[0]
    if isinstance(error, HoldfastError) or (error is not None and not isinstance(error, Exception)):
        raise error
    if error is not None:
        raise WeightTransferError(f"sending the weights failed: {error!r}") from error


def _current_device() -> int:
    import torch

    return torch.accelerator.current_device_index() if torch.accelerator.is_available() else -1


def _run(trainer: Any, device_index: int, outcome: list[BaseException | None]) -> None:
    import torch

    try:
        if device_index >= 0:
            torch.accelerator.set_device_index(device_index)  # a thread of its own starts at device 0
        trainer.send_weights()
        outcome.append(None)
    except BaseException as error:
        outcome.append(error)
