"""A completion that reached the length limit is masked whole (DAPO's overlong filtering)."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.masks.base import CompletionView, MaskContext


def truncated_mask(view: CompletionView, spec: Any, context: MaskContext) -> np.ndarray:
    return np.full(len(view), view.finish_reason != "length")
