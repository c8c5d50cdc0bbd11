"""Only tokens at which the entropy is above a threshold are kept: a hard gate (EOPD, 2603.07079)."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.masks.base import CompletionView, MaskContext
from trainer.masks.entropy import entropies_of


def entropy_threshold_mask(view: CompletionView, spec: Any, context: MaskContext) -> np.ndarray:
    entropies = entropies_of(view, spec.of, spec.kind)
    return np.zeros(len(view), dtype=bool) if entropies is None else np.asarray(entropies) > spec.above_nats
