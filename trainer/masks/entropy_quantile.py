"""Only the share of a completion's tokens with the highest entropy is kept; at least one, the earlier of equals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from trainer.masks.base import CompletionView, MaskContext
from trainer.masks.entropy import entropies_of


def entropy_quantile_mask(view: CompletionView, spec: Any, context: MaskContext) -> np.ndarray:
    kept = np.zeros(len(view), dtype=bool)
    entropies = entropies_of(view, spec.of, spec.kind)
    if entropies is None:
        return kept
    count = math.ceil(spec.keep * len(view) - 1e-9)  # 0.55 x 100 is 55, not 56
    kept[np.argsort(-entropies, kind="stable")[:count]] = True
    return kept
