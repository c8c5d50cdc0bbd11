"""Log-probabilities from hidden states, without gradient, row chunk by row chunk.

Shared by the learner (parity with the engine) and by the teacher's scorer. Legend: R rows, H hidden size, V vocabulary,
K support size. Logits are formed in float32 (float64 for float64 inputs) and divided by the temperature; nothing larger
than one chunk x vocabulary exists, except the whole distribution where it is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS_CPU = 1 << 20
"""Of one buffer of a chunk: 4 MiB in float32, inside the last-level cache."""
CHUNK_ROWS_CPU = 256
"""With a larger vocabulary this many rows, past the caches: with fewer the products wait for the head's weights."""
MAX_ELEMENTS_CPU = 44_000_000
"""Of all buffers of a chunk together, 176 MB in float32: no vocabulary takes more."""
CHUNK_ELEMENTS_CUDA = 1 << 27
"""0.5 GiB in float32; large enough that a chunk's matrix products run at full speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """What was asked of each row."""

    logprobs: Tensor
    """[R] of the given tokens"""
    support_ids: Tensor | None = None
    """int64 [R, K], or [R, K + 1] with the given token as last column"""
    support_logprobs: Tensor | None = None
    """as wide as ``support_ids``, normalised over the full vocabulary"""
    entropies: Tensor | None = None
    """[R]"""
    full_logprobs: Tensor | None = None
    """[R, V]"""


def chunk_rows(vocabulary_size: int, device: torch.device, *, buffers: int = 2) -> int:
    """How many rows one chunk of logits holds, where ``buffers`` of its size are alive at a time; by elements."""
    if device.type == "cuda":
        return max(64, CHUNK_ELEMENTS_CUDA // vocabulary_size)
    within_cache = CHUNK_ELEMENTS_CPU // vocabulary_size
    return max(1, min(max(within_cache, CHUNK_ROWS_CPU), MAX_ELEMENTS_CPU // (buffers * vocabulary_size)))


def row_logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """hidden [R, H], head [V, H] -> [R, V] in float32 (float64 stays float64), divided by the temperature."""
    if hidden.dtype in (torch.float32, torch.float64):
        logits = hidden @ head.to(hidden.dtype).T
    elif hidden.is_cuda:
        logits = torch.mm(hidden, head.to(hidden.dtype).T, out_dtype=torch.float32)
    else:
        logits = hidden.float() @ head.float().T
    return logits if temperature == 1.0 else logits.div_(temperature)


def normalise(logits: Tensor, probabilities: Tensor) -> Tensor:
    """logits [R, V] become log p in place; p is written to ``probabilities`` and returned.

    Not ``log_softmax``: over a large vocabulary on a CPU its float32 sum is off by some 1e-5, and every probability with it;
    ``sum`` adds by halves.
    """
    logits.sub_(logits.amax(-1, keepdim=True))
    torch.exp(logits, out=probabilities)
    total = probabilities.sum(-1, keepdim=True)
    logits.sub_(total.log())
    return probabilities.div_(total)


@torch.no_grad()
def score_rows(
    hidden: Tensor,
    head: Tensor,
    token_ids: Tensor,
    *,
    temperature: float,
    support_ids: Tensor | None = None,
    top_k: int = 0,
    join_sampled: bool = False,
    entropies: bool = False,
    full: bool = False,
) -> RowScores:
    """Score ``token_ids`` [R], and a support: the ids given ([R, K]), or the row's own ``top_k`` in falling order.

    ``join_sampled`` appends the token itself as the support's last column, also where it is among the K already.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in ("logprobs", "ids", "support", "entropies", "full")}
    rows = chunk_rows(head.shape[0], hidden.device)
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        log_softmax = row_logits(hidden[part], head, temperature)
        probabilities = normalise(log_softmax, torch.empty_like(log_softmax))
        tokens = token_ids[part, None]
        parts["logprobs"].append(log_softmax.gather(1, tokens)[:, 0])
        ids = support_ids[part] if support_ids is not None else (log_softmax.topk(top_k, dim=-1).indices if top_k else None)
        if ids is not None:
            ids = torch.cat((ids, tokens), dim=1) if join_sampled else ids
            parts["ids"].append(ids)
            parts["support"].append(log_softmax.gather(1, ids))
        if full:
            parts["full"].append(log_softmax)
        if entropies:
            parts["entropies"].append(-probabilities.mul_(log_softmax).sum(-1))
    joined = {name: torch.cat(values) if values else None for name, values in parts.items()}
    return RowScores(
        logprobs=joined["logprobs"],
        support_ids=joined["ids"],
        support_logprobs=joined["support"],
        entropies=joined["entropies"],
        full_logprobs=joined["full"],
    )
