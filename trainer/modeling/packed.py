"""Sequences packed end to end without padding, and where each of them lies.

Legend: N tokens of the pack, B sequences, L the longest of them, R rows (positions that predict a completion token).
The invariant: row r of a pack predicts ``target_ids[r]`` from exactly the prompt and the completion tokens before it;
other sequences of the pack are invisible to it. The last completion token is predicted but never fed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

MIN_SAVED = 0.05
"""Of a pack's tokens: below it the copies that attention needs cost as much as the tokens that are saved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrompts:
    """Between a pack of U tokens with every prompt once and the same pack of N tokens with every prompt repeated.

    Every layer reads a prompt once and attention reads it repeated, so values and gradients are those of the repeated pack.
    """

    repeated_from_shared: Tensor
    """int64 [N]"""
    shared_from_repeated: Tensor
    """int64 [U]: one of the places of every token; what attention gives is the same in all of them."""
    is_left_out: Tensor
    """bool [N]: the other places"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceLayout:
    """Where the sequences of a pack begin and end; what attention needs."""

    cumulative_lengths: Tensor
    """int32 [B + 1], first 0, last N."""
    max_length: int
    padded_from_packed: Tensor | None
    """int64 [B * L]: index into the pack for every slot of the padded form (0 for padding); None where all lengths are L."""
    packed_from_padded: Tensor | None
    """int64 [N]: index into the padded form for every token of the pack."""
    is_padding: Tensor | None
    """bool [B * L]"""
    shared: SharedPrompts | None = None
    """Set where a prompt that several sequences begin with lies in the pack once; all else here then speaks of the pack with
    every prompt repeated."""

    @property
    def num_sequences(self) -> int:
        return self.cumulative_lengths.shape[0] - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSequences:
    """A micro-batch as the model reads it."""

    token_ids: Tensor
    """int64 [1, N]"""
    position_ids: Tensor
    """int64 [1, N], restarting at 0 with every sequence."""
    layout: SequenceLayout
    row_indices: Tensor
    """int64 [R]: positions in the pack whose next token is a completion token, sequence after sequence."""
    target_ids: Tensor
    """int64 [R]: those completion tokens."""
    completion_lengths: tuple[int, ...]
    """Per sequence; rows can be split by them."""

    def split_rows(self, values: Tensor) -> list[Tensor]:
        """[R, ...] -> one tensor per sequence."""
        return list(torch.split(values, self.completion_lengths))


def pack_sequences(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, device: str | torch.device = "cpu", share_prompts: bool = False
) -> PackedSequences:
    """Pack (prompt_ids, completion_ids) pairs, both int [>= 1], in the order given.

    ``share_prompts``: equal prompts go through the model once where that saves ``MIN_SAVED`` of the tokens. Raises ValueError for
    an empty prompt or completion: the first completion token needs a position that predicts it.
    """
    if any(len(prompt) == 0 or len(completion) == 0 for prompt, completion in pairs):
        raise ValueError("a packed sequence needs at least one prompt token and one completion token")
    lengths = np.array([len(prompt) + len(completion) - 1 for prompt, completion in pairs], dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    completion_lengths = tuple(len(completion) for _, completion in pairs)
    token_ids = np.concatenate([part for prompt, completion in pairs for part in (prompt, completion[:-1])]).astype(np.int64)
    first_rows = [start + len(prompt) - 1 for start, (prompt, _) in zip(starts, pairs, strict=False)]
    row_indices = np.concatenate([np.arange(row, row + count) for row, count in zip(first_rows, completion_lengths, strict=True)])
    position_ids = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    to_device = _transfer(device)
    layout = _layout(lengths, starts, position_ids, to_device)
    if share_prompts and (places := _shared_places([prompt for prompt, _ in pairs], starts)) is not None:
        kept, place = places
        token_ids, position_ids, row_indices = token_ids[kept], position_ids[kept], place[row_indices]
        is_left_out = np.ones(starts[-1], dtype=bool)
        is_left_out[kept] = False
        shared = SharedPrompts(repeated_from_shared=to_device(place), shared_from_repeated=to_device(kept), is_left_out=to_device(is_left_out))
        layout = replace(layout, shared=shared)
    return PackedSequences(
        token_ids=to_device(token_ids)[None],
        position_ids=to_device(position_ids)[None],
        layout=layout,
        row_indices=to_device(row_indices),
        target_ids=to_device(np.concatenate([completion for _, completion in pairs]).astype(np.int64)),
        completion_lengths=completion_lengths,
    )


def _shared_places(prompts: Sequence[np.ndarray], starts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(tokens of the repeated pack that stay, int64 [U]; the place of each repeated token among them, int64 [N]).

    None where too few prompts come again.
    """
    source = np.arange(starts[-1])
    first: dict[bytes, int] = {}
    for start, prompt in zip(starts, prompts, strict=False):
        earlier = first.setdefault(np.ascontiguousarray(prompt, dtype=np.int64).tobytes(), start)
        source[start : start + len(prompt)] = np.arange(earlier, earlier + len(prompt))
    kept = np.flatnonzero(source == np.arange(len(source)))
    if len(kept) > (1.0 - MIN_SAVED) * len(source):
        return None
    return kept, np.searchsorted(kept, source)


def _layout(lengths: np.ndarray, starts: np.ndarray, position_ids: np.ndarray, to_device) -> SequenceLayout:
    longest = int(lengths.max())
    cumulative = to_device(starts.astype(np.int32))
    if (lengths == longest).all():
        return SequenceLayout(
            cumulative_lengths=cumulative, max_length=longest, padded_from_packed=None, packed_from_padded=None, is_padding=None
        )
    packed_from_padded = np.repeat(np.arange(len(lengths)) * longest, lengths) + position_ids
    padded_from_packed = np.zeros(len(lengths) * longest, dtype=np.int64)
    padded_from_packed[packed_from_padded] = np.arange(len(position_ids))
    is_padding = np.ones(len(padded_from_packed), dtype=bool)
    is_padding[packed_from_padded] = False
    return SequenceLayout(
        cumulative_lengths=cumulative,
        max_length=longest,
        padded_from_packed=to_device(padded_from_packed),
        packed_from_padded=to_device(packed_from_padded),
        is_padding=to_device(is_padding),
    )


def _transfer(device: str | torch.device):
    def to_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return to_device
