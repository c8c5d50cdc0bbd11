"""Generalised Jensen-Shannon divergence (1 - w) KL(policy || m) + w KL(teacher || m), m = (1 - w) policy + w teacher.

Divided by w it tends to KL(teacher || policy) as w -> 0, divided by 1 - w to KL(policy || teacher) as w -> 1; at
w = 0.5 it is bounded by ln 2 (SDPO, 2601.20802, section 3; GKD, 2306.13649, eq. 1, with its beta = w).
Both logarithms are functions of d = log p - log q alone: log p / m = -log(1 - w + w exp(-d)), log q / m = log p / m - d,
so a clip of the log-ratio is a clip of d.
Where the gradient stops: the teacher is a constant; the policy's gradient goes through log p, through p as a weight and
through the mixture m.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trainer.objectives.base import RowInputs, RowValues
from trainer.objectives.clips import clipped_sum, log_ratio


def jensen_shannon(rows: RowInputs, spec: Any) -> RowValues:
    """``spec``: weight w in (0, 1), the teacher's share of the mixture, and the three clips. >= 0 per row without clips."""
    policy, teacher = rows.policy_support_logprobs, rows.teacher_support_logprobs.detach()
    ratios = log_ratio(policy, teacher, spec)
    over_mixture = log_policy_over_mixture(ratios, spec.weight)
    entries = (1.0 - spec.weight) * policy.exp() * over_mixture + spec.weight * teacher.exp() * (over_mixture - ratios)
    return clipped_sum(entries, ratios, spec)


def log_policy_over_mixture(ratios: Tensor, weight: float) -> Tensor:
    """d = log p - log q -> log p / m; finite for every finite d."""
    return -torch.logaddexp(torch.full_like(ratios, math.log1p(-weight)), math.log(weight) - ratios)
