"""The learner's weights as vLLM's trainer engines want them: checkpoint names, the engine's dtype, one fixed order.

Iterating is a collective over the learner ranks. Metadata and iteration agree element for element.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource

if TYPE_CHECKING:
    import torch


class PublishesWeights(Protocol):
    """What is needed of a learner."""

    def named_full_parameters(self) -> Iterator[tuple[str, torch.Tensor]]: ...

    def parameter_metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]: ...


class LearnerSource(WeightSource):
    """``observe`` sees every fp32 tensor before it is cast: the teacher's snapshot is filled from the same pass."""

    def __init__(self, learner: PublishesWeights, dtype: torch.dtype | None = None):
        self._learner = learner
        self._dtype = dtype
        self.observe = lambda name, tensor: None

    def metadata(self) -> list[ParamMeta]:
        return [ParamMeta(name, self._dtype or dtype, shape) for name, dtype, shape in self._learner.parameter_metadata()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self._learner.named_full_parameters():
            self.observe(name, tensor)
            yield name, tensor if self._dtype is None else tensor.to(self._dtype)
