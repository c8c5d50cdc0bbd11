"""From gradients with respect to log-probabilities to the gradient with respect to a chunk's logits, without a graph.

With g_v the gradient with respect to log p_v, that of the logits is g - p * sum(g): one dense scalar times p, plus g where
it is not zero. Legend: C rows, V vocabulary, K columns of a support.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class LogitGradient:
    """Sums what the terms of one chunk say; ``finish`` once."""

    def __init__(self, dense: Callable[[], Tensor]):
        self._take_dense = dense
        """Gives a buffer [C, V], asked for only where some part is dense."""
        self._dense: Tensor | None = None
        self._mass: Tensor | None = None
        self._columns: list[tuple[Tensor, Tensor]] = []

    def add_dense(self, slopes: Tensor, slope_sums: Tensor, scale: Tensor) -> None:
        """slopes [C, V] with their row sums [C], times ``scale`` [C]; sums that miss a multiple of p do not matter."""
        if self._dense is None:
            self._dense = torch.mul(slopes, scale[:, None], out=self._take_dense())
        else:
            self._dense.addcmul_(slopes, scale[:, None])
        self._add_mass(slope_sums * scale)

    def add_columns(self, ids: Tensor, gradients: Tensor) -> None:
        """gradients [C, K] with respect to the log-probabilities of ``ids`` [C, K]"""
        self._columns.append((ids, gradients))
        self._add_mass(gradients.sum(-1))

    def _add_mass(self, mass: Tensor) -> None:
        self._mass = mass if self._mass is None else self._mass + mass

    def finish(self, probabilities: Tensor) -> Tensor | None:
        """d loss / d logits [C, V], in the buffer of ``probabilities`` where nothing is dense; None where nothing was added."""
        if self._mass is None:
            return None
        if self._dense is None:
            result = probabilities.mul_(-self._mass[:, None])
        else:
            result = self._dense.addcmul_(probabilities, self._mass[:, None], value=-1.0)
        for ids, gradients in self._columns:
            result.scatter_add_(1, ids, gradients)
        return result
