"""KL(policy || teacher) = sum_v p (log p - log q) on a support (mode seeking; SDPO, 2601.20802, eq. 1).

On a support the gradient goes through log p and through p as the weight (direct back-propagation, no score function);
the teacher q is a constant. On the sampled token alone the value is sg(log p - log q) log p: its expectation under the
policy has the gradient of the reverse KL (SDPO, proposition 2.1: a policy gradient with advantage log q / p). Its value
is not a KL; the loss head records the KL beside it.

Tail ``sampled_correction`` (EMA-PG as in 2603.25562, variants V4 and V5, with its gradient put right): where the sampled
token y is outside the support, p / sg(p) (log p - log q) of y is added. The log-ratio stays differentiable, else the
gradient would miss that of the policy's mass on the support; with it value and gradient are those of the full KL in
expectation. The correction is no vocabulary entry: of the clips it meets the log-ratio's and the token's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.objectives.base import RowInputs, RowValues
from trainer.objectives.clips import clipped_sum, log_ratio


def reverse_kl(rows: RowInputs, spec: Any) -> RowValues:
    """``spec``: the three clips. With a support the divergence itself, without the score-function estimator."""
    if rows.policy_support_logprobs is None:
        ratios = log_ratio(rows.policy_logprobs, rows.teacher_logprobs, spec).detach()[:, None]
        return clipped_sum(ratios * rows.policy_logprobs[:, None], ratios, spec)
    ratios = log_ratio(rows.policy_support_logprobs, rows.teacher_support_logprobs, spec)
    extra = None if rows.sampled_outside is None else _tail_of_the_sampled(rows, spec)
    return clipped_sum(rows.policy_support_logprobs.exp() * ratios, ratios, spec, extra)


def _tail_of_the_sampled(rows: RowInputs, spec: Any) -> Tensor:
    """[R]: 1[y outside] (log p - log q) p / sg(p)"""
    ratio = log_ratio(rows.policy_logprobs, rows.teacher_logprobs, spec)
    weight = (rows.policy_logprobs - rows.policy_logprobs.detach()).exp()
    return torch.where(rows.sampled_outside, ratio * weight, 0.0)
