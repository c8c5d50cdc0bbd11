"""Where an update fell: counts of entries by principal mask, low mask and whether their bf16 value changed.

The principal mask of a matrix is the top ``alpha`` of entries by magnitude of its rank-k reconstruction; the low mask is the
bottom ``alpha`` by magnitude of the matrix before. Magnitudes are compared as float32 (reconstructions are formed in float64
first), thresholds are exact, and entries that tie with a threshold all belong to the mask: a matrix stored in bf16 has many, so
every share divides by the size that a mask really has.

Invariant: only counts leave this file; every ratio can be formed from them again.
Legend: L long side, S short side, k columns of a basis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.diagnostics.row_blocks import RowBlocks
from trainer.diagnostics.selection import Blocks, largest
from trainer.diagnostics.spectral_drift import LowRank


@dataclass(frozen=True, slots=True)
class MaskCounts:
    """Numbers of entries."""

    principal_before: int
    """In the principal mask of the matrix before."""
    principal_after: int
    principal_both: int
    low: int
    """In the low mask, which is the matrix before's."""
    principal_updated: int
    """In the principal mask before and changed in bf16."""
    low_updated: int


def mask_counts(before: RowBlocks, after: RowBlocks, low_rank: tuple[LowRank, LowRank], alpha: float) -> MaskCounts:
    """Count; ``low_rank`` are the reconstructions of before and after."""
    entries = before.shape[0] * before.shape[1]
    rank, num_blocks = max(round(alpha * entries), 1), -(-before.shape[0] // before.rows_per_block)
    passes = [_passes(lambda side=side: _reconstruction(side, before.rows_per_block), num_blocks) for side in low_rank]
    floor_before, floor_after = (largest(each, rank, num_blocks) for each in passes)
    ceiling_low = largest(lambda: _magnitudes(before), entries - rank + 1, num_blocks)
    counts = dict.fromkeys(MaskCounts.__dataclass_fields__, 0)
    for old, new, old_magnitudes, new_magnitudes in zip(
        before.stored(), after.stored(), *(each() for each in passes), strict=True
    ):
        principal, principal_after = old_magnitudes >= floor_before, new_magnitudes >= floor_after
        low, updated = old.float().abs() <= ceiling_low, bf16_changed(old, new)
        found = (principal, principal_after, principal & principal_after, low, principal & updated, low & updated)
        for name, mask in zip(counts, found, strict=True):
            counts[name] += int(mask.count_nonzero())
    return MaskCounts(**counts)


def bf16_changed(old: Tensor, new: Tensor) -> Tensor:
    """Where the values differ once rounded to bf16; the two zeros are one value."""
    return old.bfloat16() != new.bfloat16()


def relatively_unchanged(old: Tensor, new: Tensor, tolerance: float) -> Tensor:
    """Where |new - old| <= tolerance max(|old|, |new|), of the values as they are stored.

    In float32 where both fit into it: the difference of two values so close is exact there.
    """
    dtype = torch.float64 if torch.float64 in (old.dtype, new.dtype) else torch.float32
    old, new = old.to(dtype), new.to(dtype)
    return (new - old).abs_() <= old.abs().maximum(new.abs()).mul_(tolerance)


def _passes(start: Blocks, num_blocks: int) -> Blocks:
    """As often as asked for; a single block is formed once and held."""
    if num_blocks > 1:
        return start
    held = list(start())
    return lambda: iter(held)


def _reconstruction(low_rank: LowRank, rows_per_block: int) -> Iterator[Tensor]:
    return ((rows @ low_rank.basis.T).float().abs_() for rows in low_rank.scaled.split(rows_per_block))


def _magnitudes(blocks: RowBlocks) -> Iterator[Tensor]:
    return (block.float().abs() for block in blocks.stored())
