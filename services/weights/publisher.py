"""Publishes the learner's weights: to every engine through vLLM's weight-transfer API, and as an fp32 snapshot file.

Built on every learner rank; ``publish`` is a collective, and all ranks return or all ranks raise. Invariant: when it
returns, every engine holds exactly this version; a send that failed half-way is drained and sent whole again, once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import HoldfastError, WeightTransferError

SNAPSHOTS_KEPT = 2
_DONE, _REPEAT = "done", "repeat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What was handed over."""

    version: int
    snapshot: Path
    """All parameters in float32; the two newest files are kept."""
    num_tensors: int
    bytes: int
    """Of the snapshot file."""
    seconds: float
    """Gathering, writing and loading in every engine."""


class Publisher:
    """``backend`` is shared_memory, nccl or ipc; ``workers`` are rollout worker handles, used by rank 0 alone.

    ``dtype`` is the engines': what nccl and ipc send. Shared memory always carries float32, and the engine casts.
    """

    def __init__(
        self,
        learner: Any,
        *,
        rank: int,
        world_size: int,
        workers: list[Any],
        backend: str,
        folder: Path,
        dtype: str = "float32",
        client: Any = None,
    ):
        from cluster.transfer.client import WorkerClient

        self._learner = learner
        self._rank = rank
        self._backend = backend
        self._folder = Path(folder)
        self._dtype = dtype
        self._client = WorkerClient(workers) if client is None else client
        self._trainer: Any = None
        self._source: Any = None
        self._group = _gloo_group() if world_size > 1 else None
        self.last_snapshot: Path | None = None
        """On rank 0: where the newest publication lies."""

    def publish(self, version: int) -> Publication | None:
        """Send everything under ``version``; the record on rank 0, None elsewhere.

        Raises ``WeightTransferError`` on every rank: ``publication_incomplete`` when the tensors are not exactly the
        learner's and the engines', ``rollout_worker_lost`` when an engine died, ``publication_failed`` otherwise.
        """
        started = time.perf_counter()
        if self._attempt(version, last=False) == _REPEAT:
            self._attempt(version, last=True)
        if self._rank != 0:
            return None
        return Publication(
            version=version,
            snapshot=self.last_snapshot,
            num_tensors=len(self._learner.parameter_metadata()),
            bytes=self.last_snapshot.stat().st_size,
            seconds=time.perf_counter() - started,
        )

    def snapshot(self, version: int) -> Path | None:
        """Write the weights for a teacher alone, and return the file on rank 0; engines keep the last publication. Collective."""
        from cluster.transfer.snapshot import prune, write_snapshot
        from cluster.transfer.source import LearnerSource

        tensors = [(name, tensor) for name, tensor in LearnerSource(self._learner) if self._rank == 0]
        error: HoldfastError | None = None
        if self._rank == 0:
            try:
                self.last_snapshot = write_snapshot(self._folder, version, tensors)
                prune(self._folder, SNAPSHOTS_KEPT)
            except OSError as raised:
                error = WeightTransferError(f"snapshot {version} could not be written: {raised}")
        error = self._from_lead(error)
        if error is not None:
            raise error
        return self.last_snapshot if self._rank == 0 else None

    def drain(self) -> None:
        """On rank 0: close half-open updates on every engine, so that a full send may follow. Nothing elsewhere."""
        if self._rank == 0:
            self._client.drain()

    def _attempt(self, version: int, *, last: bool) -> str:
        """One send; rank 0's outcome is every rank's, so that a repeat is the same collective everywhere."""
        error: HoldfastError | None = None
        try:
            self._send(version)
        except HoldfastError as raised:
            error = raised
        except Exception as raised:
            error = WeightTransferError(f"publication {version} failed: {raised!r}")
            error.__cause__ = raised
        error = self._first_error(error)
        outcome = self._from_lead(self._outcome(error, last) if self._rank == 0 else None)
        if isinstance(outcome, HoldfastError):
            raise outcome
        return outcome

    def _outcome(self, error: HoldfastError | None, last: bool) -> str | HoldfastError:
        """Rank 0 decides: done, once more, or the error that every rank raises."""
        if error is None:
            return _DONE
        if last or error.reason != WeightTransferError.reason:
            return error
        try:
            self.drain()
        except HoldfastError:
            return error
        return _REPEAT

    def _send(self, version: int) -> None:
        from cluster.transfer.trainer import send

        if self._trainer is None:
            self._open()
        self._client.version = version
        if self._backend == "shared_memory":
            self._trainer.version = version
            send(self._trainer, device="cpu")
            self.last_snapshot = self._trainer.last_path
        else:
            self._send_to_gpus(version)

    def _open(self) -> None:
        """The rendezvous with the engines; at the first publication, when they are known to be up."""
        from cluster.transfer.source import LearnerSource
        from cluster.transfer.trainer import open_trainer, torch_dtype

        dtype = None if self._backend == "shared_memory" else torch_dtype(self._dtype)
        self._source = LearnerSource(self._learner, dtype)
        self._trainer = open_trainer(self._backend, client=self._client, source=self._source, rank=self._rank, folder=self._folder)

    def _send_to_gpus(self, version: int) -> None:
        """NCCL or CUDA IPC to the engines; the fp32 snapshot for the teacher is written from the same pass."""
        from cluster.transfer.snapshot import prune, write_snapshot
        from cluster.transfer.trainer import send

        kept: list[tuple[str, Any]] = []
        if self._rank == 0:
            self._source.observe = lambda name, tensor: kept.append((name, tensor.detach().to("cpu")))
        trainer, self._trainer = self._trainer, None  # a send that failed leaves NCCL's group unusable
        send(trainer, device="cuda")
        self._trainer = trainer
        if self._rank == 0:
            self.last_snapshot = write_snapshot(self._folder, version, kept)
            prune(self._folder, SNAPSHOTS_KEPT)

    def _first_error(self, error: HoldfastError | None) -> HoldfastError | None:
        """On rank 0: what went wrong on any rank, its own first."""
        if self._group is None:
            return error
        import torch.distributed as dist

        everyone: list[Any] | None = [None] * dist.get_world_size(self._group) if self._rank == 0 else None
        dist.gather_object(error, everyone, dst=0, group=self._group)
        return next((item for item in everyone or [] if item is not None), None)

    def _from_lead(self, value: Any) -> Any:
        if self._group is None:
            return value
        import torch.distributed as dist

        message = [value]
        dist.broadcast_object_list(message, src=0, group=self._group)
        return message[0]


def _gloo_group() -> Any:
    import torch.distributed as dist

    return dist.new_group(backend="gloo")
