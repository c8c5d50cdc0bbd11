"""A matrix seen in blocks of rows, always with the long side as rows, as float64.

Invariant: no more than one block of ``block_entries`` entries is converted at a time, the matrix itself stays as it was mapped,
and nobody writes into a block. Singular values, principal angles and masks do not change when both matrices of a pair are transposed.

Legend: L long side, S short side, k columns of a basis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_ENTRIES = 1 << 22
"""32 MB as float64."""
GRAM_STRIPS = 4
"""A Gram matrix is symmetric: 4 strips form 10/16 of it; more are too narrow to be fast."""


@dataclass(frozen=True, slots=True)
class RowBlocks:
    """One matrix [L, S] in blocks."""

    matrix: Tensor
    """[L, S], a view of the stored matrix or of its transpose, in the stored dtype."""
    rows_per_block: int
    only: Tensor | None
    """The float64 block where one holds the matrix: converted once."""

    @classmethod
    def of(cls, matrix: Tensor, block_entries: int = BLOCK_ENTRIES) -> RowBlocks:
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
        rows = max(block_entries // max(tall.shape[1], 1), 1)
        return cls(tall, rows, tall.to(torch.float64) if rows >= tall.shape[0] else None)

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def stored(self) -> Iterator[Tensor]:
        """Blocks in the stored dtype."""
        if self.only is not None:
            yield self.matrix
            return
        for start in range(0, self.matrix.shape[0], self.rows_per_block):
            yield self.matrix[start : start + self.rows_per_block]

    def __iter__(self) -> Iterator[Tensor]:
        return iter([self.only]) if self.only is not None else (block.to(torch.float64) for block in self.stored())

    def times(self, columns: Tensor) -> Tensor:
        """[L, S] x [S, k] -> [L, k]."""
        return torch.cat([block @ columns for block in self])


def gram(blocks: Iterator[Tensor] | RowBlocks, short_side: int) -> Tensor:
    """The sum over blocks of B^T B, [S, S]: the lower half by strips of columns, mirrored."""
    total = torch.zeros(short_side, short_side, dtype=torch.float64)
    strip = -(-short_side // GRAM_STRIPS)
    for block in blocks:
        for start in range(0, short_side, strip):
            end = min(start + strip, short_side)
            total[start:end, :end].addmm_(block[:, start:end].T, block[:, :end])
    return total.tril() + total.tril(-1).T


def differences(before: RowBlocks, after: RowBlocks) -> Iterator[Tensor]:
    """Blocks of after - before, formed in float64."""
    return (new - old for old, new in zip(before, after, strict=True))
