"""Only the first tokens are kept; how many may grow with the step of the stage."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.masks.base import CompletionView, MaskContext


def prefix_mask(view: CompletionView, spec: Any, context: MaskContext) -> np.ndarray:
    return np.arange(len(view)) < spec.tokens_at(context.step, context.max_tokens)
