"""Log-probabilities from hidden states, without gradient, row chunk by row chunk.

Shared by the learner (parity with the engine) and by the teacher's scorer. Legend: R rows, H hidden size, V vocabulary,
K support size. Logits are formed in float32 (float64 for float64 inputs) and divided by the temperature; nothing larger
than one chunk x vocabulary exists.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS_CPU = 1 << 20
"""Elements of one chunk of logits: 4 MiB in float32, inside the last-level cache."""
CHUNK_ELEMENTS_CUDA = 1 << 27
"""0.5 GiB in float32; large enough that a chunk's matrix products run at full speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowScores:
    """What was asked of each row."""

    logprobs: Tensor
    """[R] of the given tokens"""
    support_ids: Tensor | None = None
    """int64 [R, K]"""
    support_logprobs: Tensor | None = None
    """[R, K], normalised over the full vocabulary"""


def chunk_rows(vocabulary_size: int, device: torch.device) -> int:
    """How many rows one chunk of logits holds."""
    elements = CHUNK_ELEMENTS_CUDA if device.type == "cuda" else CHUNK_ELEMENTS_CPU
    return max(64, elements // vocabulary_size)


def row_logits(hidden: Tensor, head: Tensor, temperature: float) -> Tensor:
    """hidden [R, H], head [V, H] -> [R, V] in float32 (float64 stays float64), divided by the temperature."""
    if hidden.dtype in (torch.float32, torch.float64):
        logits = hidden @ head.to(hidden.dtype).T
    elif hidden.is_cuda:
        logits = torch.mm(hidden, head.to(hidden.dtype).T, out_dtype=torch.float32)
    else:
        logits = hidden.float() @ head.float().T
    return logits if temperature == 1.0 else logits.div_(temperature)


@torch.no_grad()
def score_rows(
    hidden: Tensor,
    head: Tensor,
    token_ids: Tensor,
    *,
    temperature: float,
    support_ids: Tensor | None = None,
    top_k: int = 0,
) -> RowScores:
    """Score ``token_ids`` [R], and a support: the ids given ([R, K]), or the row's own ``top_k`` in falling order."""
    logprobs, supports, on_supports = [], [], []
    rows = chunk_rows(head.shape[0], hidden.device)
    for start in range(0, hidden.shape[0], rows):
        part = slice(start, start + rows)
        log_softmax = torch.log_softmax(row_logits(hidden[part], head, temperature), dim=-1)
        logprobs.append(log_softmax.gather(1, token_ids[part, None])[:, 0])
        if support_ids is not None:
            on_supports.append(log_softmax.gather(1, support_ids[part]))
        elif top_k:
            values, ids = log_softmax.topk(top_k, dim=-1)
            supports.append(ids)
            on_supports.append(values)
    return RowScores(
        logprobs=torch.cat(logprobs),
        support_ids=support_ids if support_ids is not None else (torch.cat(supports) if supports else None),
        support_logprobs=torch.cat(on_supports) if on_supports else None,
    )
