"""Only the thinking, up to and with the text that closes it, or only the answer after it is kept.

The text counts at its first occurrence; the token that holds its last character is the last of the thinking. A completion
without it is all answer. A closing text that is one id of the vocabulary is found by that id too, for tokenizers that spell
special tokens as nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.masks.base import CompletionView, MaskContext


def region_mask(view: CompletionView, spec: Any, context: MaskContext) -> np.ndarray:
    is_thinking = np.arange(len(view)) < _thinking_tokens(view, spec.end)
    return is_thinking if spec.keep == "thinking" else ~is_thinking


def _thinking_tokens(view: CompletionView, end: str) -> int:
    """How many tokens the thinking has; 0 where it is never closed."""
    ids = view.lookup("region").text_token_ids(end)
    if len(ids) == 1 and (found := np.flatnonzero(view.token_ids == int(ids[0]))).size:
        return int(found[0]) + 1
    text, starts, _ = view.spans
    place = text.find(end)
    return 0 if place < 0 else int((starts < place + len(end)).sum())
