"""What a teacher says of each row, where some ids of the policy mean nothing to it.

Legend: R rows, V the policy's vocabulary, K support size. ``masked`` bool [V] are the ids on which an external model has
another vocabulary: they never enter the teacher's own top-K. ``absent`` bool [V] are those of them that it has no row for:
probability 0 by construction of the output matrix. Invariant: everything that is sent is finite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from trainer.modeling.scoring import RowScores, score_rows

UNKNOWN_TOKEN_LOGPROB = -100.0
"""In place of minus infinity at ids that the teacher has no row for; masked, so that the value never counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is wanted of every row besides the sampled token."""

    temperature: float
    top_k: int = 0
    """The teacher's own most likely ids."""
    join_sampled: bool = False
    """Append the sampled token to them, as column K + 1."""
    entropies: bool = False
    full: Literal["none", "hidden", "logprobs"] = "none"


@torch.no_grad()
def teacher_rows(
    hidden: Tensor,
    head: Tensor,
    token_ids: Tensor,
    asked: Asked,
    *,
    support_ids: Tensor | None = None,
    masked: Tensor | None = None,
    absent: Tensor | None = None,
) -> RowScores:
    """hidden [R, H'], head [V, H'], token_ids [R], support_ids [R, K] where the caller brings them."""
    own = support_ids is None and asked.top_k > 0
    spare = int((masked if absent is None else masked & ~absent).sum()) if own and masked is not None else 0
    rows = score_rows(
        hidden,
        head,
        token_ids,
        temperature=asked.temperature,
        support_ids=support_ids,
        top_k=asked.top_k + spare if own else 0,
        join_sampled=own and asked.join_sampled,
        entropies=asked.entropies,
        full=asked.full == "logprobs",
    )
    if spare:
        rows = _without_masked(rows, masked, asked)
    return rows if absent is None else _finite(rows, token_ids, absent)


def _without_masked(rows: RowScores, masked: Tensor, asked: Asked) -> RowScores:
    """The first K of more columns that are not masked, still in falling order, and the joined one behind them."""
    columns = rows.support_ids.shape[1]
    candidates = columns - int(asked.join_sampled)
    order = masked[rows.support_ids[:, :candidates]].to(torch.uint8).sort(dim=1, stable=True).indices[:, : asked.top_k]
    if asked.join_sampled:
        order = torch.cat([order, order.new_full((len(order), 1), candidates)], dim=1)
    return replace(rows, support_ids=rows.support_ids.gather(1, order), support_logprobs=rows.support_logprobs.gather(1, order))


def _finite(rows: RowScores, token_ids: Tensor, absent: Tensor) -> RowScores:
    support = rows.support_logprobs
    if support is not None and rows.support_ids is not None:
        support = support.masked_fill(absent[rows.support_ids], UNKNOWN_TOKEN_LOGPROB)
    return replace(rows, logprobs=rows.logprobs.masked_fill(absent[token_ids], UNKNOWN_TOKEN_LOGPROB), support_logprobs=support)
