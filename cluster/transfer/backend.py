"""Our weight-transfer backend for vLLM: one snapshot file in shared memory, registered in both of vLLM's factories.

The trainer half writes the file and drives start, update, finish; the engine half maps it and loads it through vLLM's
layerwise reload, since linear weights are prepacked on a CPU and a plain ``load_weights`` would not reach them. What
arrives is compared with what was announced before anything is loaded, so a publication is all or nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from cluster.errors import WeightTransferError
from cluster.transfer.snapshot import prune, read_snapshot, snapshot_shapes, write_snapshot

BACKEND = "holdfast_snapshot"
SNAPSHOTS_KEPT = 2
"""The newest, and the one before it, which a slower reader may still have mapped."""


@dataclass
class SnapshotInitInfo(WeightTransferInitInfo):
    """What every publication will hold: names and shapes, from the learner's metadata."""

    names: list[str]
    shapes: list[list[int]]


@dataclass
class SnapshotUpdateInfo(WeightTransferUpdateInfo):
    """Where the publication lies."""

    path: str
    version: int


class SnapshotEngine(WeightTransferEngine[SnapshotInitInfo, SnapshotUpdateInfo]):
    """The engine half, in vLLM's worker."""

    init_info_cls = SnapshotInitInfo
    update_info_cls = SnapshotUpdateInfo

    def init_transfer_engine(self, init_info: SnapshotInitInfo) -> None:
        self._expected = {name: tuple(shape) for name, shape in zip(init_info.names, init_info.shapes, strict=True)}

    def start_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # vLLM's own version synchronises an accelerator, which a CPU is not.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SnapshotUpdateInfo) -> None:
        path = Path(update_info.path)
        check_complete(snapshot_shapes(path), self._expected, update_info.version)
        dtype = self.model_config.dtype
        tensors = read_snapshot(path)
        self.model.load_weights((name, tensors[name].to(self.device, dtype)) for name in self._expected)

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        return None


def check_complete(found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]], version: int) -> None:
    """Raises ``WeightTransferError`` (publication_incomplete) naming the first tensors that differ."""
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    misshapen = sorted(name for name in set(found) & set(expected) if found[name] != expected[name])
    if missing or extra or misshapen:
        raise WeightTransferError(
            f"publication {version} is not whole: missing {missing[:3]}, unknown {extra[:3]}, of another shape {misshapen[:3]} "
            f"({len(found)} tensors, {len(expected)} were announced)",
            reason="publication_incomplete",
            details={"missing": missing, "extra": extra, "misshapen": misshapen},
        )


@dataclass
class SnapshotTrainerInitInfo(TrainerInitInfo):
    """The trainer half's settings."""

    backend: ClassVar[str] = BACKEND
    folder: str


class SnapshotTrainer(TrainerWeightTransferEngine[SnapshotTrainerInitInfo]):
    """The trainer half, on every learner rank; only rank 0 writes and calls."""

    init_info_cls = SnapshotTrainerInitInfo

    def __init__(self, *, folder: Path, **options: Any):
        super().__init__(**options)
        self._folder = folder
        self.version = 0
        self.last_path: Path | None = None

    @classmethod
    def trainer_init(cls, init_info: SnapshotTrainerInitInfo, *, client: Any, source: Any = None) -> SnapshotTrainer:
        trainer = cls(folder=Path(init_info.folder), client=client, source=source, is_sender=init_info.is_sender)
        if trainer.is_sender:
            metadata = source.metadata()
            client.init_weight_transfer_engine({"names": [item.name for item in metadata], "shapes": [list(item.shape) for item in metadata]})
        return trainer

    def send_weights(self) -> None:
        """Gather on every rank; write, announce, finish and tag on rank 0."""
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        self.last_path = write_snapshot(self._folder, self.version, iter(self.source))
        self.client.start_weight_update()
        self.client.update_weights({"path": str(self.last_path), "version": self.version})
        self.client.finish_weight_update(str(self.version))
        prune(self._folder, SNAPSHOTS_KEPT)


def torch_dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
