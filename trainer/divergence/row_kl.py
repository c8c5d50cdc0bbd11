"""KL between two models at every prefix, over the full vocabulary, row chunk by row chunk.

Invariant: exact for each prefix (no sampling over the next token), never negative, and exactly 0 where both models give the same
logits: sum of p (d + exp(-d) - 1) with d = log p - log q, whose terms are all >= 0 and sum to KL(p||q).
Legend: R rows (prefixes), H and G hidden sizes, V vocabulary. Nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.modeling.scoring import chunk_rows, normalise, row_logits

BUFFERS = 8
"""Of chunk x vocabulary that are alive at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowKL:
    """Of each row, float64 [R]; p is the first model, q the second."""

    first_second: Tensor
    """KL(p||q)"""
    second_first: Tensor
    """KL(q||p)"""
    first_logprobs: Tensor
    second_logprobs: Tensor
    """of the given tokens"""
    second_entropies: Tensor


FAR = 20.0
"""Nats: float32 overflows at 88."""


@torch.no_grad()
def row_kl(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], token_ids: Tensor, *, temperature: float = 1.0) -> RowKL:
    """``first`` and ``second`` are (hidden [R, H], head [V, H]) of models with one vocabulary; ``token_ids`` int64 [R]."""
    sizes = [head.shape[0] for _, head in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the models have vocabularies of {sizes[0]} and {sizes[1]} tokens; a divergence needs the same one")
    parts: list[tuple[Tensor, ...]] = []
    step = chunk_rows(sizes[0], first[0].device, buffers=BUFFERS)
    for start in range(0, first[0].shape[0], step):
        part = slice(start, start + step)
        parts.append(_chunk(*(row_logits(hidden[part], head, temperature) for hidden, head in (first, second)), token_ids[part]))
    columns = [torch.cat(column).double() for column in zip(*parts, strict=True)]
    return RowKL(first_second=columns[0], second_first=columns[1], first_logprobs=columns[2], second_logprobs=columns[3], second_entropies=columns[4])


def _chunk(log_p: Tensor, log_q: Tensor, tokens: Tensor) -> tuple[Tensor, ...]:
    """Logits [C, V] of both, which become log-probabilities in place."""
    p, q = normalise(log_p, torch.empty_like(log_p)), normalise(log_q, torch.empty_like(log_q))
    gap = log_p - log_q
    return (
        _terms(p, q, gap).sum(-1),
        _terms(q, p, -gap).sum(-1),
        log_p.gather(1, tokens[:, None])[:, 0],
        log_q.gather(1, tokens[:, None])[:, 0],
        -(q * log_q).sum(-1),
    )


def _terms(p: Tensor, q: Tensor, gap: Tensor) -> Tensor:
    """p (gap + exp(-gap) - 1) = p gap + q - p, each at least 0; gap = log p - log q. The first form keeps its digits where p and
    q are close; where exp(-gap) would overflow the second has nothing to lose."""
    far = gap < -FAR
    return torch.where(far, p * gap + (q - p), p * (gap + torch.expm1(-gap.clamp(min=-FAR))))
