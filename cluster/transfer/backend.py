"""Our weight-transfer backend for vLLM, ``holdfast_snapshot``: one snapshot file in shared memory.

The trainer half writes the file and drives start, update, finish. The engine half maps it and loads it through vLLM's
layerwise reload: on a CPU linear weights are prepacked and freed, so a plain ``load_weights`` cannot reach them, and the
prepacked copy of a tied ``lm_head`` is refreshed only when ``lm_head.weight`` is sent by name.

Invariant: an engine holds one publication or another, never a mix. What arrives is compared with what was announced
before a single tensor is touched, and the reload opens and closes inside ``receive_weights``, so a learner that is killed
between any two calls leaves a whole set of weights behind.
"""

from __future__ import annotations

import json
import logging
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
from cluster.transfer.plugin import BACKEND
from cluster.transfer.snapshot import prune, read_snapshot, snapshot_shapes, write_snapshot

SNAPSHOTS_KEPT = 2
"""The newest, and the one before it, which a slower reader may not have opened yet."""
OUTPUT_MATRIX = "lm_head.weight"
_NOT_LEARNED = ("rotary_emb.inv_freq", ".masked_bias", ".attn.bias")
"""Endings of tensors that old checkpoints hold and no learner trains."""

Shapes = dict[str, tuple[int, ...]]


@dataclass
class SnapshotInitInfo(WeightTransferInitInfo):
    """What every publication will hold: names and shapes, from the learner's metadata."""

    names: list[str]
    shapes: list[list[int]]


@dataclass
class SnapshotUpdateInfo(WeightTransferUpdateInfo):
    """Where the publication lies, and how many tensors it has."""

    path: str
    version: int
    num_tensors: int


class SnapshotEngine(WeightTransferEngine[SnapshotInitInfo, SnapshotUpdateInfo]):
    """The engine half, in vLLM's worker."""

    init_info_cls = SnapshotInitInfo
    update_info_cls = SnapshotUpdateInfo
    _expected: Shapes | None = None

    def init_transfer_engine(self, init_info: SnapshotInitInfo) -> None:
        announced = {name: tuple(shape) for name, shape in zip(init_info.names, init_info.shapes, strict=True)}
        check_announced(announced, checkpoint_shapes(Path(self.model_config.model)))
        self._expected = announced

    def start_weight_update(self) -> None:
        """Nothing yet: the reload opens when the snapshot has proved to be whole."""

    def finish_weight_update(self) -> None:
        """Nothing left: ``receive_weights`` has closed the reload."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        # vLLM's own version synchronises an accelerator, which a CPU is not.
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: SnapshotUpdateInfo) -> None:
        if self._expected is None:
            raise WeightTransferError("an update came before init_weight_transfer_engine")
        path = Path(update_info.path)
        shapes = snapshot_shapes(path)
        check_complete(shapes, self._expected, update_info.version)
        if update_info.num_tensors != len(shapes):
            raise _incomplete(f"publication {update_info.version} holds {len(shapes)} tensors, {update_info.num_tensors} were sent")
        self._reload(read_snapshot(path))

    def _reload(self, tensors: dict[str, torch.Tensor]) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        dtype = self.model_config.dtype
        _silence_computed_buffers()
        initialize_layerwise_reload(self.model)
        try:
            self.model.load_weights((name, tensors[name].to(self.device, dtype)) for name in self._expected)
        finally:
            finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Nothing is held open."""


def _silence_computed_buffers() -> None:
    """vLLM warns at every reload that rotary tables, which are computed, were not loaded."""
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").addFilter(_is_about_weights)


def _is_about_weights(record: logging.LogRecord) -> bool:
    return not (record.args and str(record.args[0]).endswith("RotaryEmbedding"))


def check_complete(found: Shapes, expected: Shapes, version: int) -> None:
    """Raises ``WeightTransferError`` (publication_incomplete) naming the first tensors that differ."""
    missing = sorted(set(expected) - set(found))
    extra = sorted(set(found) - set(expected))
    misshapen = sorted(name for name in set(found) & set(expected) if found[name] != expected[name])
    if missing or extra or misshapen:
        raise _incomplete(
            f"publication {version} is not whole: missing {missing[:3]}, unknown {extra[:3]}, of another shape {misshapen[:3]} "
            f"({len(found)} tensors came, {len(expected)} were announced)",
            missing=missing,
            extra=extra,
            misshapen=misshapen,
        )


def check_announced(announced: Shapes, checkpoint: Shapes) -> None:
    """The learner's list must cover the engine's own checkpoint, and name the output matrix even when it is tied.

    Raises ``WeightTransferError`` (publication_incomplete).
    """
    required = {name: shape for name, shape in checkpoint.items() if not name.endswith(_NOT_LEARNED)}
    missing = sorted(name for name in {*required, OUTPUT_MATRIX} if name not in announced)
    misshapen = sorted(name for name, shape in required.items() if announced.get(name, shape) != shape)
    if missing or misshapen:
        raise _incomplete(
            f"the learner announces {len(announced)} tensors that do not make up the engine's model: "
            f"missing {missing[:3]}, of another shape {misshapen[:3]}",
            missing=missing,
            misshapen=misshapen,
        )


def checkpoint_shapes(folder: Path) -> Shapes:
    """Names and shapes of a model folder's safetensors files; empty where there are none."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    shapes: Shapes = {}
    for path in (folder / name for name in sorted(names)):
        if path.is_file():
            shapes |= snapshot_shapes(path)
    return shapes


@dataclass
class SnapshotTrainerInitInfo(TrainerInitInfo):
    """The trainer half's settings."""

    backend: ClassVar[str] = BACKEND
    folder: str


class SnapshotTrainer(TrainerWeightTransferEngine[SnapshotTrainerInitInfo]):
    """The trainer half, on every learner rank; only rank 0 writes and calls. ``version`` is set before a send."""

    init_info_cls = SnapshotTrainerInitInfo

    def __init__(self, *, folder: Path, **options: Any):
        super().__init__(**options)
        self._folder = folder
        self.version = 0
        self.last_path: Path | None = None

    @classmethod
    def trainer_init(cls, init_info: SnapshotTrainerInitInfo, *, client: Any, source: Any = None) -> SnapshotTrainer:
        if source is None:
            raise ValueError("a snapshot trainer needs a WeightSource")
        trainer = cls(folder=Path(init_info.folder), client=client, source=source, is_sender=init_info.is_sender)
        if trainer.is_sender:
            metadata = source.metadata()
            names, shapes = [item.name for item in metadata], [list(item.shape) for item in metadata]
            client.init_weight_transfer_engine({"names": names, "shapes": shapes})
        return trainer

    def send_weights(self) -> None:
        """Gather on every rank; write, announce, finish and tag on rank 0."""
        if not self.is_sender:
            for _ in self.source:
                pass
            return
        pairs = list(self.source)  # the collective ends here, before anything of rank 0 alone can fail
        self.last_path = write_snapshot(self._folder, self.version, pairs)
        self.client.start_weight_update()
        self.client.update_weights({"path": str(self.last_path), "version": self.version, "num_tensors": len(pairs)})
        self.client.finish_weight_update(str(self.version))
        prune(self._folder, SNAPSHOTS_KEPT)


def close_reload(worker: Any) -> bool:
    """Close a layerwise reload that was left open in a vLLM worker; True if there was one.

    Its model then runs, but its weights may be of two publications. Needed after an update that raised: vLLM forgets
    the update then, and a new start would count into layers that are half full.
    """
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    model = worker.model_runner.model
    if not any(get_layerwise_info(layer).can_load() for layer in model.modules()):
        return False
    with set_current_vllm_config(worker.vllm_config):
        finalize_layerwise_reload(model, worker.model_config)
    return True


def _incomplete(message: str, **details: list[str]) -> WeightTransferError:
    return WeightTransferError(message, reason="publication_incomplete", details=details)
