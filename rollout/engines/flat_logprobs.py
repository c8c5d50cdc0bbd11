"""vLLM's flat lists of log-probabilities as numpy arrays; the hot path between an engine and a step.

Invariant: the support of a position is exactly the K most likely ids in falling order, whether or not the sampled id is
among them.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def unflatten_logprobs(
    flat: Any, token_ids: np.ndarray, support_k: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Return the sampled tokens' log-probabilities [T] and, with support_k > 0, the top K's ids and log-probabilities [T, K].

    ``flat`` has ``start_indices`` and ``end_indices`` [T] into ``token_ids`` and ``logprobs``. A position holds the
    sampled id and the top K: K + 1 entries, or K where the sampled one is among them and was not repeated. Raises
    ValueError when a position holds less.
    """
    num_tokens = len(token_ids)
    ids = np.asarray(flat.token_ids, dtype=np.int32)
    values = np.asarray(flat.logprobs, dtype=np.float32)
    if len(ids) == num_tokens * (support_k + 1):  # the sampled id first in every row
        ids, values = ids.reshape(num_tokens, support_k + 1), values.reshape(num_tokens, support_k + 1)
        if np.array_equal(ids[:, 0], token_ids):
            if support_k == 0:
                return values[:, 0].copy(), None, None
            return values[:, 0].copy(), *_falling(ids[:, 1:], values[:, 1:])
        ids, values = ids.reshape(-1), values.reshape(-1)
    return _ragged(flat, ids, values, token_ids, support_k)


def _falling(ids: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows in falling order of their values; equal values keep the engine's order."""
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(values, order, axis=1)


def _ragged(
    flat: Any, ids: np.ndarray, values: np.ndarray, token_ids: np.ndarray, support_k: int
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Rows of different widths: every id once per row, sorted, cut at K."""
    starts, ends = np.asarray(flat.start_indices), np.asarray(flat.end_indices)
    rows = np.repeat(np.arange(len(token_ids)), ends - starts)
    if len(starts) != len(token_ids) or len(rows) != len(ids):
        raise ValueError(f"log-probabilities of {len(starts)} positions came for {len(token_ids)} tokens")
    _, first = np.unique(rows.astype(np.int64) << 32 | ids, return_index=True)
    rows, ids, values = rows[first], ids[first], values[first]
    order = np.lexsort((-values, rows))
    rows, ids, values = rows[order], ids[order], values[order]
    is_sampled = ids == token_ids[rows]
    if is_sampled.sum() != len(token_ids):
        raise ValueError("a sampled token has no log-probability")
    sampled = values[is_sampled]
    if support_k == 0:
        return sampled, None, None
    widths = np.bincount(rows, minlength=len(token_ids))
    if widths.min(initial=support_k) < support_k:
        raise ValueError(f"a position holds {widths.min()} log-probabilities; {support_k} were asked for")
    rank = np.arange(len(rows)) - np.repeat(np.cumsum(widths) - widths, widths)
    kept = rank < support_k
    return sampled, ids[kept].reshape(-1, support_k), values[kept].reshape(-1, support_k)
