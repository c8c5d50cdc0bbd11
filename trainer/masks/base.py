"""What a mask sees of a completion, and what it may look up.

A mask is a pure function (completion, its own spec, context) -> bool [T], True where the token is kept. It never sees
another completion, a score or a method's name. Legend: T completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np


class TokenTable(Protocol):
    """The tokenizer's side of a mask; ``rollout.chat.ChatFormat`` is one."""

    special_token_ids: frozenset[int]
    """What the tokenizer itself calls special."""
    end_token_ids: frozenset[int]
    """What ends a completion."""

    def text_token_ids(self, text: str) -> Sequence[int]: ...

    def token_pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The decoded piece of every token; their concatenation is the text."""
        ...


@dataclass(frozen=True, kw_only=True)
class CompletionView:
    """One completion as masks see it."""

    rollout_id: str
    token_ids: np.ndarray
    """int32 [T]"""
    finish_reason: str
    table: TokenTable | None
    policy_entropies: np.ndarray | None = None
    """float32 [T], where the learner looked at the batch before it was packed"""
    teacher_entropies: np.ndarray | None = None
    """float32 [T]; None for a completion without a target"""
    has_target: bool = True

    def __len__(self) -> int:
        return len(self.token_ids)

    def lookup(self, kind: str) -> TokenTable:
        """The token table; raises ValueError, naming the mask, where the caller gave none."""
        if self.table is None:
            raise ValueError(f"mask {kind} needs the tokenizer's table, got none")
        return self.table

    @cached_property
    def spans(self) -> tuple[str, np.ndarray, np.ndarray]:
        """(text, int64 [T] first character of each token, int64 [T] one past its last). A token may spell nothing."""
        pieces = self.lookup("pattern or region").token_pieces(self.token_ids.tolist())
        if len(pieces) != len(self.token_ids):
            raise ValueError(f"rollout {self.rollout_id}: {len(pieces)} token pieces for {len(self.token_ids)} tokens")
        ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        starts = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
        return "".join(pieces), starts, ends


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskContext:
    """What masks may depend on besides the completion."""

    step: int
    """Of the stage, counted from 0."""
    max_tokens: int
    """The stage's longest completion."""


Mask = Callable[[CompletionView, Any, MaskContext], np.ndarray]
"""(completion, the mask's own spec, context) -> bool [T], True where the token is kept."""
