"""What the policy says of given completions, without gradient: log-probabilities and, if wanted, entropies.

Used for parity with the engine, for masks by the policy's entropy, and for the policy before the first of several updates.
Invariant: the same inputs on every rank give the same results on every rank; the work is shared out between them, and every
rank makes the same number of forward passes, as FSDP2's collectives demand. Legend: T completion tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.collectives import gather_vectors
from trainer.modeling.packed import pack_sequences
from trainer.modeling.policy_model import PolicyModel
from trainer.modeling.scoring import RowScores, score_rows

Pair = tuple[np.ndarray, np.ndarray]
"""Prompt and completion."""
NOTHING: list[Pair] = [(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))]
"""What a rank without work of its own scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceScores:
    """Of one completion."""

    logprobs: np.ndarray
    """float32 [T], normalised over the full vocabulary, at the temperature asked for"""
    entropies: np.ndarray | None = None
    """float32 [T]: of the whole distribution at each position, in nats"""


@torch.no_grad()
def score_sequences(
    model: PolicyModel,
    pairs: Sequence[Pair],
    *,
    temperature: float,
    entropies: bool,
    budget_tokens: int,
    rank: int,
    world_size: int,
    device: torch.device,
) -> list[SequenceScores]:
    """Scores in the order of ``pairs`` (collective). A forward pass takes at most ``budget_tokens`` tokens."""
    parts = list(within_budget(pairs, budget_tokens))
    ends = np.cumsum([0, *(sum(len(completion) for _, completion in part) for part in parts)]).tolist()
    columns = torch.zeros((1 + int(entropies), ends[-1]), dtype=torch.float32, device=device)
    for turn in range(math.ceil(len(parts) / world_size)):
        own = turn * world_size + rank
        scores = _score(model, parts[own] if own < len(parts) else NOTHING, temperature, entropies, device)
        if own < len(parts):
            columns[0, ends[own] : ends[own + 1]] = scores.logprobs
            if entropies:
                columns[1, ends[own] : ends[own + 1]] = scores.entropies
    # every token was scored by one rank and is zero on the others, so the sum is exact
    everyone = gather_vectors(columns.flatten()).sum(0).view_as(columns)
    return _split(everyone, [len(completion) for _, completion in pairs])


def _score(model: PolicyModel, part: list[Pair], temperature: float, entropies: bool, device: torch.device) -> RowScores:
    packed = pack_sequences(part, device=device, share_prompts=True)

    def head_of(hidden: Tensor, head: Tensor) -> RowScores:
        return score_rows(hidden, head, packed.target_ids, temperature=temperature, entropies=entropies)

    return model(packed, head_of)


def _split(columns: Tensor, lengths: list[int]) -> list[SequenceScores]:
    ends = np.cumsum(lengths)[:-1]
    split = [np.split(column, ends) for column in columns.cpu().numpy()] if lengths else [[]]
    of_entropies = split[1] if len(split) > 1 else [None] * len(lengths)
    return [
        SequenceScores(logprobs=logprobs.copy(), entropies=None if values is None else values.copy())
        for logprobs, values in zip(split[0], of_entropies, strict=True)
    ]


def within_budget(pairs: Sequence[Pair], budget_tokens: int) -> Iterator[list[Pair]]:
    """Cut a list into runs of at most ``budget_tokens`` tokens; a longer sequence goes alone."""
    part: list[Pair] = []
    size = 0
    for pair in pairs:
        tokens = len(pair[0]) + len(pair[1])
        if part and size + tokens > budget_tokens:
            yield part
            part, size = [], 0
        part.append(pair)
        size += tokens
    if part:
        yield part
