"""What is recorded of the rows of a micro-batch that is not one term's own, collected chunk by chunk in [C] vectors.

Legend: C rows of a chunk, R of the micro-batch, V vocabulary, K columns of the top-K support. The one invariant: a metric
is a mean over rows, so chunk sizes, micro-batches and ranks do not change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.modeling.loss_rows import LossRows
from trainer.objectives.supports import log_mass, with_tail_bucket
from trainer.step_metrics import StepMetrics
from trainer.terms import POSITION_BUCKETS, StageLoss

OVERLAP_K = 20
"""Ids of each side that are compared where the support is the full vocabulary."""
OVERLAP_ELEMENTS = 1 << 18
"""Of the rows that are copied to be ranked at once: 1 MiB in float32."""
OVERLAP_STRIDE = 8
"""Ranking a row costs as much as its share of a matrix product: one row of 8 is looked at."""


@dataclass(slots=True, kw_only=True)
class ChunkRecord:
    """Detached [C] vectors of one chunk; None where the stage does not have them."""

    sampled: Tensor
    """log p of the sampled tokens"""
    entropies: Tensor
    reverse: Tensor | None = None
    """KL(policy || teacher) on the full vocabulary, else on the top-K support with its tail in one bucket"""
    policy_mass: Tensor | None = None
    """p of the top-K support"""
    teacher_mass: Tensor | None = None
    overlap: Tensor | None = None
    """Share of the policy's own most likely ids that are the support's, or the teacher's; NaN in the rows between"""

    def read_support(self, policy: Tensor | None, teacher: Tensor | None, present: Tensor | None) -> None:
        """[C, K] log-probabilities of both on the top-K support."""
        if policy is None:
            return
        self.policy_mass, self.teacher_mass = (log_mass(values, present)[:, 0].exp() for values in (policy, teacher))
        if self.reverse is None:
            policy, teacher = (with_tail_bucket(values, present) for values in (policy, teacher))
            entries = policy.exp() * (policy - teacher)
            if present is not None:
                entries[:, :-1] = torch.where(present, entries[:, :-1], 0.0)
            self.reverse = entries.sum(-1)


def read_overlap(
    loss: StageLoss, rows: LossRows, part: slice, policy: Tensor, teacher: Tensor | None, support_ids: Tensor | None
) -> Tensor | None:
    """[C]: of the policy's K most likely ids, the share in the support; of its own support, the share in the teacher's K.

    Which rows are ranked depends on the row alone, not on its place in a micro-batch. Not a number in the others.
    """
    if support_ids is None and teacher is None:
        return None
    ranked = _ranked(rows, part)
    width = min(OVERLAP_K if support_ids is None else loss.top_k.k, policy.shape[1])
    overlap = torch.full((policy.shape[0],), torch.nan, dtype=policy.dtype, device=policy.device)
    given = teacher if support_ids is None or loss.ranks_in_chunk else None
    for block in ranked.split(max(1, OVERLAP_ELEMENTS // policy.shape[1])):
        own = policy[block].topk(width, dim=-1).indices
        others = support_ids[block, :width] if given is None else given[block].topk(width, dim=-1).indices
        overlap[block] = (own[:, :, None] == others[:, None, :]).any(-1).to(policy.dtype).mean(-1)
    return overlap


def _ranked(rows: LossRows, part: slice) -> Tensor:
    """Row numbers within ``part``, by position and token: the same rows whatever micro-batch they are in."""
    positions = torch.from_numpy(rows.positions[part]).to(rows.token_ids.device)
    return ((positions + rows.token_ids[part]) % OVERLAP_STRIDE == 0).nonzero()[:, 0]


@torch.no_grad()
def record_rows(loss: StageLoss, rows: LossRows, records: Sequence[ChunkRecord], metrics: StepMetrics) -> None:
    """The micro-batch's rows, all chunks together."""
    sampled = _joined(records, "sampled")
    metrics.add_rows("policy/entropy_nats", _joined(records, "entropies"))
    if loss.has_rollout_logprobs:
        difference = sampled - rows.rollout_logprobs
        metrics.add_rows("policy/mismatch_nats_mean", difference.abs())
        metrics.add_rows("policy/sampled_kl_to_rollout_nats", -difference)
        metrics.add_maximum("policy/mismatch_nats_max", difference.abs())
    if loss.has_teacher and rows.teacher_logprobs is not None and (rows.taught is None or len(rows.taught)):
        _record_teacher(loss, rows, records, sampled, metrics)


def _record_teacher(loss: StageLoss, rows: LossRows, records: Sequence[ChunkRecord], sampled: Tensor, metrics: StepMetrics) -> None:
    """KL(policy || teacher) on the widest support there is, its sampled estimate by position, and where the teacher agrees."""
    taught = None if rows.taught is None else torch.from_numpy(rows.taught).to(sampled.device)

    def pick(values: Tensor) -> Tensor:
        return values if taught is None else values.index_select(0, taught)

    gap = pick(sampled) - pick(rows.teacher_logprobs)
    metrics.add_rows("teacher/positive_share", gap < 0)
    metrics.add_rows("teacher/sampled_kl_nats", gap)
    _record_by_position(rows, gap, metrics)
    reverse = _joined(records, "reverse")
    metrics.add_rows("teacher/kl_nats", gap if reverse is None else pick(reverse))
    for name, field in (("policy/support_mass", "policy_mass"), ("teacher/support_mass", "teacher_mass")):
        mass = _joined(records, field)
        if mass is not None:
            metrics.add_rows(name, pick(mass))
    overlap = _joined(records, "overlap")
    if overlap is not None:
        looked = _ranked(rows, slice(0, rows.count))
        if taught is not None:
            looked = looked[torch.isin(looked, taught)]
        metrics.add_rows("teacher/support_overlap", overlap.index_select(0, looked))


def _record_by_position(rows: LossRows, gap: Tensor, metrics: StepMetrics) -> None:
    """gap [taught rows] = log p - log q of the sampled token, by the token's position in its completion."""
    positions = rows.positions if rows.taught is None else rows.positions[rows.taught]
    buckets = np.searchsorted(POSITION_BUCKETS, positions, side="right") - 1
    for bucket in np.unique(buckets):
        index = torch.from_numpy(np.flatnonzero(buckets == bucket)).to(gap.device)
        metrics.add_rows(f"teacher/gap_nats/at_{POSITION_BUCKETS[bucket]}", gap.index_select(0, index))


def _joined(records: Sequence[ChunkRecord], field: str) -> Tensor | None:
    values = [getattr(record, field) for record in records]
    return None if values[0] is None else torch.cat(values)
