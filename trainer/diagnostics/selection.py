"""The r-th largest magnitude of more entries than are held at once, exactly.

Magnitudes are float32, whose bit patterns are ordered as the values are. One pass counts the upper 16 bits, a second the lower
15 of those that share the upper bits of the wanted one; nothing but the two counts is kept. A single block is partitioned
directly. Both are exact and give the same threshold.

Invariant: at least r entries are >= the threshold, fewer than r are greater.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

LOW_BITS = 15
NUM_HIGH = 1 << (31 - LOW_BITS)
NUM_LOW = 1 << LOW_BITS

Blocks = Callable[[], Iterable[Tensor]]
"""Starts a pass: the same float32 magnitudes, none negative, in the same order every time."""


def largest(blocks: Blocks, rank: int, num_blocks: int) -> float:
    """The ``rank``-th largest magnitude, rank from 1."""
    if num_blocks == 1:
        (only,) = blocks()
        entries = only.reshape(-1).numpy()
        return float(np.partition(entries, entries.size - rank)[entries.size - rank])
    counts = _counts(((bits >> LOW_BITS) for bits in _bits(blocks)), NUM_HIGH)
    high, above = _bin_of(counts, rank)
    inside = (bits[(bits >> LOW_BITS) == high] & (NUM_LOW - 1) for bits in _bits(blocks))
    low, _ = _bin_of(_counts(inside, NUM_LOW), rank - above)
    return float(torch.tensor((high << LOW_BITS) | low, dtype=torch.int32).view(torch.float32))


def _bits(blocks: Blocks) -> Iterable[Tensor]:
    return (block.reshape(-1).contiguous().view(torch.int32) for block in blocks())


def _counts(values: Iterable[Tensor], num_bins: int) -> Tensor:
    total = torch.zeros(num_bins, dtype=torch.int64)
    for part in values:
        total += torch.bincount(part, minlength=num_bins)
    return total


def _bin_of(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the ``rank``-th largest, and how many entries lie in the bins above it."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, rank))
    if place == len(counts):
        raise ValueError("fewer entries came in the second pass than in the first")
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, above
