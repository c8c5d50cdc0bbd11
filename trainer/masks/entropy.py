"""Reading one of the two entropies that a completion may carry; shared by the masks that look at them."""

from __future__ import annotations

import numpy as np

from trainer.masks.base import CompletionView


def entropies_of(view: CompletionView, whose: str, kind: str) -> np.ndarray | None:
    """float32 [T] of ``policy`` or ``teacher``; None where a completion has no teacher to ask. Missing otherwise is an error."""
    if whose == "teacher" and not view.has_target:
        return None
    values = view.teacher_entropies if whose == "teacher" else view.policy_entropies
    if values is None:
        raise ValueError(f"rollout {view.rollout_id}: mask {kind} reads the {whose}'s entropy, but none was computed")
    if len(values) != len(view):
        raise ValueError(f"rollout {view.rollout_id}: {len(values)} entropies of the {whose} for {len(view)} tokens")
    return values
