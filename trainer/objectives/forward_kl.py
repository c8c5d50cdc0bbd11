"""KL(teacher || policy) = sum_v q (log q - log p) on a support (mode covering; SDFT, 2601.19897, as its code has it).

Where the gradient stops: the teacher q is a constant; the gradient goes through log p alone, d/dz = p - q on the full
vocabulary.
"""

from __future__ import annotations

from typing import Any

from trainer.objectives.base import RowInputs, RowValues


def forward_kl(rows: RowInputs, spec: Any) -> RowValues:
    """Needs a support (top-K with tail bucket, or full). >= 0 per row."""
    policy, teacher = rows.policy_support_logprobs, rows.teacher_support_logprobs.detach()
    return RowValues(values=(teacher.exp() * (teacher - policy)).sum(-1))
