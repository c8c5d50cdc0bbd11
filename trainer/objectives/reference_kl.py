"""A penalty for leaving the reference, estimated on the sampled token (see ``kl_estimators.py`` for what each is unbiased of).

Where the gradient stops: the reference is a constant; the gradient goes through the policy's log-probability of the
token. The expected gradient of k2 is that of KL(policy || reference), of k3 that of KL(reference || policy); k1's is zero,
and the spec refuses it as a loss.
"""

from __future__ import annotations

from typing import Any

from trainer.objectives.base import RowInputs, RowValues
from trainer.objectives.kl_estimators import KL_ESTIMATORS


def reference_kl(rows: RowInputs, spec: Any) -> RowValues:
    """``spec``: estimator. Metric ``kl_nats``: the value itself, before coefficient and importance weight."""
    values = KL_ESTIMATORS[spec.estimator](rows.policy_logprobs, rows.reference_logprobs.detach())
    return RowValues(values=values, metrics={"kl_nats": values.detach()})
