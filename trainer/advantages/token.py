"""One advantage per token: the outcome's, and the teacher's log-ratio of the token and, discounted, of those after it.

A_t = outcome_weight x A + teacher_weight x sum_{u >= t} future_coupling^(u - t) (log q_u - log p_u). Legend: T completion
tokens, q the teacher's and p the rollout's probability of the sampled token. Pure, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAdvantages:
    """Of one completion and one term."""

    values: np.ndarray
    """float32 [T]"""
    clipped: np.ndarray
    """bool [T]: where the advantage itself was held"""


def token_advantages(
    outcome: float,
    spec: Any,
    *,
    num_tokens: int,
    rollout_logprobs: np.ndarray | None = None,
    teacher_logprobs: np.ndarray | None = None,
    comparable: np.ndarray | None = None,
) -> TokenAdvantages:
    """Without ``teacher_logprobs`` the teacher's part is 0: the outcome alone is left.

    ``comparable`` [T] is False where the teacher's probability means another text (a vocabulary that differs): such a token
    has no log-ratio, neither of its own nor in the sums of those before it, and is left out of a sequence's mean.
    """
    valid = np.ones(num_tokens, dtype=bool) if comparable is None else comparable
    values = np.full(num_tokens, spec.outcome_weight * outcome, dtype=np.float64)
    if teacher_logprobs is not None and spec.teacher_weight > 0.0:
        values += spec.teacher_weight * _teacher_part(rollout_logprobs, teacher_logprobs, valid, spec)
    if spec.level == "sequence" and valid.any():
        values = np.full(num_tokens, values[valid].mean())
    clipped = np.zeros(num_tokens, dtype=bool)
    if spec.clip is not None:
        clipped = np.abs(values) > spec.clip
        values = np.clip(values, -spec.clip, spec.clip)
    return TokenAdvantages(values=values.astype(np.float32), clipped=clipped)


def _teacher_part(rollout_logprobs: np.ndarray, teacher_logprobs: np.ndarray, valid: np.ndarray, spec: Any) -> np.ndarray:
    ratios = np.asarray(teacher_logprobs, np.float64) - np.asarray(rollout_logprobs, np.float64)
    if spec.log_ratio_clip is not None:
        ratios = np.clip(ratios, -spec.log_ratio_clip, spec.log_ratio_clip)
    return discounted_sums(np.where(valid, ratios, 0.0), spec.future_coupling)


def discounted_sums(values: np.ndarray, discount: float) -> np.ndarray:
    """float64 [T] -> a new [T]: sum over u >= t of discount^(u - t) values_u."""
    if discount == 0.0:
        return values.copy()
    backwards = list(accumulate(reversed(values.tolist()), lambda later, own: own + discount * later))
    return np.array(backwards[::-1])
