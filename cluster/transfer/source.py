"""The learner's weights as vLLM's trainer engines want them: checkpoint names, the engine's dtype, one fixed order.

Iterating is a collective over the learner ranks. Invariant: metadata and iteration agree element for element; a learner
that yields anything else than it declared stops the publication on every rank at the same tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

from cluster.errors import WeightTransferError


class PublishesWeights(Protocol):
    """What is needed of a learner; both list the same names in the same order."""

    def named_full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole float32 tensors, one at a time; a collective over ranks."""
        ...

    def parameter_metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype, shape; moves nothing."""
        ...


class LearnerSource(WeightSource):
    """``dtype`` None sends the fp32 masters as they are.

    ``observe`` sees every fp32 tensor before the cast, so that the teacher's snapshot is filled from the same pass.
    """

    def __init__(self, learner: PublishesWeights, dtype: torch.dtype | None = None):
        self._learner = learner
        self._dtype = dtype
        self.observe: Callable[[str, torch.Tensor], None] | None = None

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, self._dtype or dtype, tuple(shape)) for name, dtype, shape in self._learner.parameter_metadata()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        declared = self._learner.parameter_metadata()
        sent = 0
        for name, tensor in self._learner.named_full_parameters():
            if sent >= len(declared) or (name, tuple(tensor.shape)) != (declared[sent][0], tuple(declared[sent][2])):
                due = f"{declared[sent][0]!r} {tuple(declared[sent][2])}" if sent < len(declared) else "nothing more"
                raise _incomplete(f"tensor {sent} is {name!r} {tuple(tensor.shape)}, due was {due}")
            sent += 1
            if self.observe is not None:
                self.observe(name, tensor)
            yield name, tensor if self._dtype is None else tensor.to(self._dtype)
        if sent != len(declared):
            raise _incomplete(f"{sent} tensors came, {len(declared)} were declared; the first that is missing is {declared[sent][0]!r}")


def _incomplete(what: str) -> WeightTransferError:
    return WeightTransferError(f"the learner's weights are not what it declared: {what}", reason="publication_incomplete")
