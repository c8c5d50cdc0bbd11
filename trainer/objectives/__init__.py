"""Objectives by the ``kind`` of their spec: pure functions of rows, see ``base.py``."""

from __future__ import annotations

from trainer.objectives.base import Objective, RowInputs, RowValues
from trainer.objectives.cross_entropy import cross_entropy
from trainer.objectives.forward_kl import forward_kl
from trainer.objectives.jensen_shannon import jensen_shannon
from trainer.objectives.policy_gradient import policy_gradient
from trainer.objectives.reverse_kl import reverse_kl

OBJECTIVES: dict[str, Objective] = {
    "policy_gradient": policy_gradient,
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jensen_shannon": jensen_shannon,
    "cross_entropy": cross_entropy,
}

ADVANTAGE_KINDS = ("policy_gradient",)
"""Objectives whose gradient is zero where the advantage is."""
OBJECTIVE_METRICS: dict[str, tuple[str, ...]] = {"policy_gradient": ("clipped_share",)}
"""Names of the per-row metrics that an objective returns; every rank must know them before it has seen a row."""

__all__ = ["ADVANTAGE_KINDS", "OBJECTIVES", "OBJECTIVE_METRICS", "Objective", "RowInputs", "RowValues"]
