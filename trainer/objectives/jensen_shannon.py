"""Generalised Jensen-Shannon divergence (1 - w) KL(policy || m) + w KL(teacher || m), m = (1 - w) policy + w teacher.

Divided by w it tends to KL(teacher || policy) as w -> 0, divided by 1 - w to KL(policy || teacher) as w -> 1; at
w = 0.5 it is bounded by ln 2 (SDPO, 2601.20802, section 3; GKD, 2306.13649, eq. 1, with its beta = w).
Where the gradient stops: the teacher is a constant; the policy's gradient goes through log p, through p as a weight and
through the mixture m.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from trainer.objectives.base import RowInputs, RowValues


def jensen_shannon(rows: RowInputs, spec: Any) -> RowValues:
    """``spec``: weight w in (0, 1), the teacher's share of the mixture. >= 0 per row."""
    weight = spec.weight
    policy, teacher = rows.policy_support_logprobs, rows.teacher_support_logprobs.detach()
    mixture = torch.logaddexp(policy + math.log1p(-weight), teacher + math.log(weight))
    from_policy = (policy.exp() * (policy - mixture)).sum(-1)
    from_teacher = (teacher.exp() * (teacher - mixture)).sum(-1)
    return RowValues(values=(1.0 - weight) * from_policy + weight * from_teacher)
