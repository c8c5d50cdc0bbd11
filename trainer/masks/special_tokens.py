"""Special tokens, and every piece of further texts, are masked: at their first occurrence in a completion, or at each."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.masks.base import CompletionView, MaskContext


def special_tokens_mask(view: CompletionView, spec: Any, context: MaskContext) -> np.ndarray:
    table = view.lookup(spec.kind)
    ids = set(table.special_token_ids)
    for text in spec.texts:
        ids.update(int(token_id) for token_id in table.text_token_ids(text))
    is_special = np.isin(view.token_ids, sorted(ids))
    if spec.occurrences == "all":
        return ~is_special
    is_first = np.zeros(len(view), dtype=bool)
    is_first[np.unique(view.token_ids, return_index=True)[1]] = True
    return ~(is_special & is_first)
