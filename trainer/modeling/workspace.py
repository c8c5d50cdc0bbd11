"""Buffers [C, V] that all chunks of a micro-batch share: fresh memory of this size costs more than what is done in it.

The invariant: a name is one buffer, and whoever takes it may overwrite whatever another chunk left there.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Workspace:
    """Allocated at first use, by names that are said beforehand: the size of a chunk is chosen by how many they are."""

    def __init__(self, names: tuple[str, ...], rows: int, vocabulary: int, dtype: torch.dtype, device: torch.device):
        self.names = names
        self._shape, self._dtype, self._device = (rows, vocabulary), dtype, device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, rows: int) -> Tensor:
        """[rows, V] with arbitrary content; ``rows`` at most those of a chunk."""
        if name not in self.names:
            raise KeyError(f"buffer {name!r} is not among {self.names}")
        if name not in self._buffers:
            self._buffers[name] = torch.empty(self._shape, dtype=self._dtype, device=self._device)
        return self._buffers[name][:rows]
