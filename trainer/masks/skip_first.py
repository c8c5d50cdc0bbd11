"""The first tokens of a completion are masked: the opening of an answer echoes what the teacher was shown."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.masks.base import CompletionView, MaskContext


def skip_first_mask(view: CompletionView, spec: Any, context: MaskContext) -> np.ndarray:
    return np.arange(len(view)) >= spec.tokens
