"""Objectives by the ``kind`` of their spec: pure functions of rows, see ``base.py``."""

from __future__ import annotations

from typing import Any

from trainer.objectives.base import Objective, RowInputs, RowValues
from trainer.objectives.clips import has_clips
from trainer.objectives.cross_entropy import cross_entropy
from trainer.objectives.entropy_bonus import entropy_bonus
from trainer.objectives.forward_kl import forward_kl
from trainer.objectives.jensen_shannon import jensen_shannon
from trainer.objectives.policy_gradient import policy_gradient
from trainer.objectives.reference_kl import reference_kl
from trainer.objectives.reverse_kl import reverse_kl

OBJECTIVES: dict[str, Objective] = {
    "policy_gradient": policy_gradient,
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "cross_entropy": cross_entropy,
    "reference_kl": reference_kl,
    "entropy_bonus": entropy_bonus,
}

ADVANTAGE_KINDS = ("policy_gradient",)
"""Objectives whose gradient is zero where the advantage is."""
OBJECTIVE_METRICS: dict[str, tuple[str, ...]] = {"policy_gradient": ("clipped_share",), "reference_kl": ("kl_nats",)}
"""Names of the per-row metrics that an objective always returns."""


def objective_metrics(spec: Any) -> tuple[str, ...]:
    """Names of the per-row metrics of an objective with these settings; every rank knows them before it has seen a row."""
    return OBJECTIVE_METRICS.get(spec.kind, ()) + (("clipped_share",) if has_clips(spec) else ())


__all__ = ["ADVANTAGE_KINDS", "OBJECTIVES", "OBJECTIVE_METRICS", "Objective", "RowInputs", "RowValues", "objective_metrics"]
