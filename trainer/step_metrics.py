"""Metrics of one optimizer step: collected on the device, reduced over ranks by one collective.

The invariant: every rank builds the same names in the same order before it has seen a row, so that one flat vector can
be exchanged. A mean is the global sum over the global count, never a mean of means.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.collectives import gather_vectors


class StepMetrics:
    """Sums, means and maxima by name, in float64."""

    def __init__(self, *, sums: Sequence[str], means: Sequence[str], maxima: Sequence[str], device: torch.device | str = "cpu"):
        self._sums, self._means, self._maxima = tuple(sums), tuple(means), tuple(maxima)
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self._totals = {name: zero for name in (*self._sums, *self._means, *self._maxima)}
        self._counts = dict.fromkeys(self._means, 0.0)

    def add_sum(self, name: str, value: Tensor | float) -> None:
        self._totals[name] = self._totals[name] + value

    def add_rows(self, name: str, values: Tensor) -> None:
        """[R] values of a mean over rows."""
        self._totals[name] = self._totals[name] + values.detach().sum(dtype=torch.float64)
        self._counts[name] += values.shape[0]

    def add_maximum(self, name: str, values: Tensor) -> None:
        """[R >= 1] values, all >= 0."""
        self._totals[name] = torch.maximum(self._totals[name], values.detach().max().double())

    def reduce(self) -> dict[str, float]:
        """Global values by name, the same on every rank (collective). A mean without rows anywhere is left out."""
        rows = gather_vectors(self._vector()).cpu()
        summed, largest = rows.sum(0).tolist(), rows.max(0).values.tolist()
        num_sums, num_means = len(self._sums), len(self._means)
        result = dict(zip(self._sums, summed, strict=False))
        counts = summed[num_sums + num_means + len(self._maxima) :]
        for name, total, count in zip(self._means, summed[num_sums:], counts, strict=False):
            if count > 0:
                result[name] = total / count
        result |= dict(zip(self._maxima, largest[num_sums + num_means :], strict=False))
        return result

    def _vector(self) -> Tensor:
        totals = torch.stack(list(self._totals.values()))
        counts = torch.tensor([self._counts[name] for name in self._means], dtype=torch.float64, device=totals.device)
        return torch.cat((totals, counts))
