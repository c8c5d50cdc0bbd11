"""What an objective reads and returns. An objective is row-local: it knows no denominator, no rank, no other row.

Legend: R rows (tokens) of one chunk, K columns of the support (V for the full vocabulary, K + 1 with a tail bucket or the
sampled token joined), V vocabulary. Everything is in nats, at the stage's temperature and normalised over the full
vocabulary (within the support where its tail is ``renormalise``).

The one invariant: the value of a row depends on that row alone, so chunking, packing, micro-batches and ranks cannot
change a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this before exp: e^20 = 4.9e8 is far past every clip, and still finite in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowInputs:
    """A chunk of rows. Nothing of size all tokens x vocabulary exists anywhere."""

    policy_logprobs: Tensor
    """[R] of the sampled tokens; carries gradient."""
    policy_support_logprobs: Tensor | None = None
    """[R, K] on the support, carries gradient; None on the sampled token alone."""
    policy_entropies: Tensor | None = None
    """[R] over the full vocabulary, carries gradient."""
    rollout_logprobs: Tensor
    """[R] recorded by the engine when it sampled."""
    old_logprobs: Tensor | None = None
    """[R] the policy before the batch's first update, where the learner knows it; no gradient."""
    teacher_logprobs: Tensor | None = None
    """[R] of the sampled tokens; no gradient."""
    teacher_support_logprobs: Tensor | None = None
    """[R, K] on the same columns as ``policy_support_logprobs``; no gradient."""
    sampled_outside: Tensor | None = None
    """bool [R]: the sampled token is not in the support, and stands for all that is not (tail ``sampled_correction``)."""
    reference_logprobs: Tensor | None = None
    """[R] a frozen anchor; never the teacher."""
    advantages: Tensor | None = None
    """[R]"""
    token_weights: Tensor
    """[R] masks, density, the normaliser's share. The caller multiplies by them; an objective may read them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowValues:
    """What an objective makes of a chunk."""

    values: Tensor
    """[R] to be minimised; carries gradient."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached [R] tensors whose mean over the term's rows is worth recording; names as in ``objective_metrics``."""


Objective = Callable[[RowInputs, Any], RowValues]
"""(rows, the objective's own spec) -> per-row values and metrics; no sums, no config of the job."""
