"""KL(policy || teacher) = sum_v p (log p - log q) on a support (mode seeking; SDPO, 2601.20802, eq. 1).

On a support the gradient goes through log p and through p as the weight (direct back-propagation, no score function);
the teacher q is a constant. On the sampled token alone the value is sg(log p - log q) log p: its expectation under the
policy has the gradient of the reverse KL (SDPO, proposition 2.1: a policy gradient with advantage log q / p). Its value
is not a KL; the loss head records the KL beside it.
"""

from __future__ import annotations

from typing import Any

from trainer.objectives.base import RowInputs, RowValues


def reverse_kl(rows: RowInputs, spec: Any) -> RowValues:
    """With a support: the divergence itself, >= 0 per row. Without: the score-function estimator."""
    if rows.policy_support_logprobs is None:
        log_ratio = (rows.policy_logprobs - rows.teacher_logprobs).detach()
        return RowValues(values=log_ratio * rows.policy_logprobs)
    policy, teacher = rows.policy_support_logprobs, rows.teacher_support_logprobs.detach()
    return RowValues(values=(policy.exp() * (policy - teacher)).sum(-1))
