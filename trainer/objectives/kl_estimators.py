"""Estimators of KL(policy || reference) from the sampled token alone (Schulman, "Approximating KL divergence", 2020).

With d = log p - log r of a token that the policy sampled: k1 = d (unbiased, either sign), k2 = d^2 / 2 (biased, >= 0),
k3 = r / p - 1 + d (unbiased, >= 0). As values all three estimate the same number. As losses they differ: k1 has zero
expected gradient, k2 that of KL(policy || reference), k3 that of KL(reference || policy).

The one invariant: arithmetic only, so the same function serves numpy arrays (a penalty in the reward) and torch tensors
(a term of the loss, with gradient through ``policy``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trainer.objectives.base import MAX_LOG_RATIO


def k1(policy: Any, reference: Any) -> Any:
    """[...] log-probabilities of the sampled tokens under both -> [...]"""
    return policy - reference


def k2(policy: Any, reference: Any) -> Any:
    difference = policy - reference
    return 0.5 * difference * difference


def k3(policy: Any, reference: Any) -> Any:
    log_ratio = reference - policy
    held = log_ratio.clip(-MAX_LOG_RATIO, MAX_LOG_RATIO)  # the exponential alone: far from the reference the line still pulls back
    return (held.expm1() if hasattr(held, "expm1") else np.expm1(held)) - log_ratio


KL_ESTIMATORS: dict[str, Callable[[Any, Any], Any]] = {"k1": k1, "k2": k2, "k3": k3}
