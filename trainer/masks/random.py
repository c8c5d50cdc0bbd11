"""Each token is masked with probability ``ratio``; a function of rollout and position alone.

Invariant: the same rollout gives the same mask in every process and at every length, so that a replayed step is the same
step. Which denominator the masked tokens belong to is the term's business (``trainer/term_weights.py``).
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from trainer.masks.base import CompletionView, MaskContext


def random_mask(view: CompletionView, spec: Any, context: MaskContext) -> np.ndarray:
    seed = int.from_bytes(hashlib.blake2b(view.rollout_id.encode(), digest_size=16).digest(), "little")
    # one draw per position, in order: a longer completion only adds draws
    return np.random.Generator(np.random.Philox(key=seed)).random(len(view)) >= spec.ratio
