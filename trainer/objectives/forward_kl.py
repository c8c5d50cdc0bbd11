"""KL(teacher || policy) = sum_v q (log q - log p) on a support (mode covering; SDFT, 2601.19897, as its code has it).

On the sampled token alone the value is sg(q / p - 1) (-log p): with y from the policy its expected gradient is that of the
sum over the vocabulary. The 1 is a baseline (the score has mean zero), so that a token on which both agree pulls nowhere. That
value is not a KL; the loss head records the KL beside it.

Where the gradient stops: the teacher q is a constant, and q / p of the sampled token as well; the gradient goes through
log p alone, d/dz = p - q on the full vocabulary.
"""

from __future__ import annotations

from typing import Any

from trainer.objectives.base import MAX_LOG_RATIO, RowInputs, RowValues
from trainer.objectives.clips import clipped_sum, log_ratio


def forward_kl(rows: RowInputs, spec: Any) -> RowValues:
    """``spec``: the three clips. With a support the divergence itself, without the sampled token's estimator."""
    if rows.policy_support_logprobs is None:
        ratios = log_ratio(rows.policy_logprobs, rows.teacher_logprobs, spec).detach()[:, None]
        weights = (-ratios).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).expm1()
        return clipped_sum(weights * -rows.policy_logprobs[:, None], ratios, spec)
    ratios = log_ratio(rows.policy_support_logprobs, rows.teacher_support_logprobs, spec)
    return clipped_sum(-rows.teacher_support_logprobs.detach().exp() * ratios, ratios, spec)
