"""Clipped policy gradient on the sampled token (PPO, 1707.06347, eq. 7; two bounds as in DAPO, 2503.14476, eq. 8).

value = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r = exp(policy - old). Either bound may be missing; without both
it is -r A. With ``dual_clip`` c (1912.09729, eq. 6) a row with A < 0 is bounded below in its objective:
value = -max(min(...), c A).

Where the gradient stops: ``old`` (the policy before the batch's first update, or the rollout's recorded log-probabilities
where there is none) and the advantage are constants. On on-policy data r = 1 and the gradient is -A grad log p, not zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from trainer.objectives.base import MAX_LOG_RATIO, RowInputs, RowValues


def policy_gradient(rows: RowInputs, spec: Any) -> RowValues:
    """``spec``: clip_low, clip_high, dual_clip (or None). Metric ``clipped_share``: rows where a bound took the gradient."""
    old = rows.rollout_logprobs if rows.old_logprobs is None else rows.old_logprobs
    log_ratio = (rows.policy_logprobs - old.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = torch.exp(log_ratio)
    advantages = rows.advantages.detach()
    unclipped = ratio * advantages
    lowest = 0.0 if spec.clip_low is None else 1.0 - spec.clip_low
    highest = math.inf if spec.clip_high is None else 1.0 + spec.clip_high
    clipped = ratio.clamp(lowest, highest) * advantages
    gains = torch.minimum(unclipped, clipped)
    bound = clipped < unclipped
    if spec.dual_clip is not None:
        floor = spec.dual_clip * advantages
        below = (advantages < 0) & (gains < floor)
        gains = torch.where(below, floor, gains)
        bound = bound | below
    return RowValues(values=-gains, metrics={"clipped_share": bound.detach()})
