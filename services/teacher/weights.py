"""Weight sets: a model that scores, and the float32 weights that it scores with.

Invariant: a set shares no tensor with another set, with a snapshot or with a file; every change is a copy into its own
tensors. So an anchor cannot move because the policy does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cluster.errors import TeacherError, WeightTransferError
from cluster.transfer.snapshot import read_snapshot
from services.teacher.strategies import State
from trainer.modeling.policy_model import PolicyModel

TIED_HEAD = "lm_head.weight"


class WeightSet:
    """``state`` is the model's own tensors where ``masters`` is None, else the float32 weights that they are rounded from."""

    def __init__(self, model: PolicyModel, masters: State | None = None):
        self.model = model.requires_grad_(False)
        self.parameters = {name: parameter.data for name, parameter in model.model.named_parameters()}
        self.state: State = self.parameters if masters is None else masters

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Take the values of ``weights``."""
        for name, tensor in self.state.items():
            tensor.copy_(weights[name])
        self.settle()

    def settle(self) -> None:
        """Let the model score with the state, after it was written into."""
        for name, tensor in self.state.items():
            if self.parameters[name] is not tensor:
                self.parameters[name].copy_(tensor)


class PolicyWeights:
    """Where weights of the policy's architecture come from: the base model, snapshots, other checkpoints."""

    def __init__(self, folder: Path, *, device: torch.device, dtype: torch.dtype):
        self.folder, self.device, self.dtype = folder, device, dtype
        self.shapes: dict[str, torch.Size] = {}

    def new_set(self) -> WeightSet:
        """A set at the base model's weights."""
        made = WeightSet(
            PolicyModel.load(self.folder, dtype=self.dtype).to(self.device),
            None if self.dtype == torch.float32 else {name: tensor.to(self.device) for name, tensor in self.base().items()},
        )
        self.shapes = {name: tensor.shape for name, tensor in made.state.items()}
        return made

    def base(self) -> State:
        return _parameters(self.folder)

    def snapshot(self, path: Path) -> State:
        """The policy's float32 masters. Raises WeightTransferError unless every tensor is there as it must be."""
        policy = read_snapshot(Path(path))
        wrong, extra = self._misfits(policy)
        if extra or wrong:
            raise WeightTransferError(
                f"snapshot {Path(path).name} is not the policy's float32 masters: missing or of another shape or dtype "
                f"{sorted(wrong)[:3]}, unknown {sorted(extra)[:3]}",
                reason="publication_incomplete",
            )
        return {name: policy[name] for name in self.shapes}

    def checkpoint(self, folder: Path) -> State:
        """Another checkpoint of the policy's architecture, which a teacher begins from."""
        weights = _parameters(folder)
        wrong, extra = self._misfits(weights)
        if extra or wrong:
            raise TeacherError(
                f"the checkpoint {folder} that the teacher begins from is not of the policy's architecture: missing or of another "
                f"shape {sorted(wrong)[:3]}, unknown {sorted(extra)[:3]}",
                reason="teacher_architecture",
            )
        return weights

    def fits(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether these are exactly a set's weights, as ``save`` wrote them."""
        return {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()} == {
            name: (shape, torch.float32) for name, shape in self.shapes.items()
        }

    def _misfits(self, weights: Mapping[str, Tensor]) -> tuple[list[str], set[str]]:
        """(missing or of another shape or dtype, unknown)"""
        wrong = [
            name
            for name, shape in self.shapes.items()
            if name not in weights or weights[name].shape != shape or weights[name].dtype != torch.float32
        ]
        return wrong, set(weights) - set(self.shapes) - {TIED_HEAD}


def _parameters(folder: Path) -> State:
    return {name: parameter.detach() for name, parameter in PolicyModel.load(folder).model.named_parameters()}


def load_external(folder: Path, *, device: torch.device, dtype: torch.dtype) -> WeightSet:
    """A frozen model of any architecture that scores; no float32 copy, for it never follows."""
    return WeightSet(PolicyModel.load(folder, dtype=dtype).to(device))
