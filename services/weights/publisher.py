"""Publishes the learner's weights: to every engine through vLLM's weight-transfer API, and as the teacher's fp32 snapshot.

Built on every learner rank; ``publish`` is a collective. A publication is all or nothing for each engine: one that failed
half-way is drained and sent whole again, once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import WeightTransferError

SNAPSHOTS_KEPT = 2


@dataclass(frozen=True, slots=True)
class Publication:
    """What was handed over."""

    version: int
    snapshot: Path
    num_tensors: int
    num_bytes: int
    seconds: float


class Publisher:
    """``backend``: shared_memory, nccl or ipc."""

    def __init__(self, learner: Any, *, rank: int, world_size: int, workers: list[Any], backend: str, folder: Path, dtype: str = "float32"):
        from cluster.transfer.client import RolloutWorkersClient

        self._learner = learner
        self._rank = rank
        self._world_size = world_size
        self._backend = backend
        self._folder = folder
        self._dtype = dtype
        self._num_workers = len(workers)
        self.client = RolloutWorkersClient(workers)
        self._trainer: Any = None
        self._source: Any = None
        self.last_snapshot: Path | None = None

    def _open(self) -> None:
        """The rendezvous with the engines; at the first publication, when they are known to be up."""
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        from cluster.transfer.backend import SnapshotTrainerInitInfo, torch_dtype
        from cluster.transfer.plugin import register
        from cluster.transfer.source import LearnerSource

        register()
        if self._backend == "shared_memory":
            info: Any = SnapshotTrainerInitInfo(folder=str(self._folder), rank=self._rank)
            self._source = LearnerSource(self._learner)
        else:
            info = self._gpu_init_info()
            self._source = LearnerSource(self._learner, torch_dtype(self._dtype))
        self._trainer = WeightTransferTrainerFactory.trainer_init(info, client=self.client, source=self._source)

    def _gpu_init_info(self) -> Any:
        if self._backend == "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

            return IPCTrainerInitInfo(packed=True, rank=self._rank)
        import socket

        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return NCCLTrainerInitInfo(
            master_address=socket.gethostbyname(socket.gethostname()),
            master_port=port,
            world_size=1 + self._num_workers,
            packed=True,
            rank=self._rank,
        )

    def publish(self, version: int) -> Publication | None:
        """Send everything under ``version``; returns the record on the lead. Raises ``WeightTransferError``."""
        started = time.perf_counter()
        if self._trainer is None:
            self._open()
        if self._backend == "shared_memory":
            self._trainer.version = version
            self._send_with_one_repeat()
            self.last_snapshot = self._trainer.last_path
        else:
            self._send_to_gpus(version)
        if self._rank != 0:
            return None
        metadata = self._learner.parameter_metadata()
        return Publication(
            version=version,
            snapshot=self.last_snapshot,
            num_tensors=len(metadata),
            num_bytes=self.last_snapshot.stat().st_size,
            seconds=time.perf_counter() - started,
        )

    def _send_with_one_repeat(self) -> None:
        # A repeat needs every rank in the collective again, so it is done only where one rank alone decides.
        try:
            self._trainer.send_weights()
        except WeightTransferError as error:
            if error.reason != "publication_failed" or self._world_size > 1:
                raise
            self.drain()
            self._trainer.send_weights()

    def _send_to_gpus(self, version: int) -> None:
        """NCCL or CUDA IPC to the engines; the fp32 snapshot for the teacher is written from the same pass."""
        from cluster.transfer.snapshot import prune, write_snapshot

        kept: list[tuple[str, Any]] = []
        if self._rank == 0:
            self._source.observe = lambda name, tensor: kept.append((name, tensor.detach().to("cpu")))
        self._trainer.send_weights()
        if self._rank == 0:
            self.client.finish_version(str(version)) if hasattr(self.client, "finish_version") else self.client._all(
                "update_weight_version", [(str(version),)] * self._num_workers
            )
            self.last_snapshot = write_snapshot(self._folder, version, kept)
            prune(self._folder, SNAPSHOTS_KEPT)

    def drain(self) -> None:
        """On the lead: finish half-open updates on every worker, so that a full send may follow."""
        self.client.drain()
