"""The end-of-sequence token is masked."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainer.masks.base import CompletionView, MaskContext


def end_of_sequence_mask(view: CompletionView, spec: Any, context: MaskContext) -> np.ndarray:
    return ~np.isin(view.token_ids, sorted(view.lookup(spec.kind).end_token_ids))
