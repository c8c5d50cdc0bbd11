"""Importance weights between the engine that sampled and the policy that learns (truncated importance sampling).

A token's weight is min(policy / rollout, cap), without gradient (SDPO, 2601.20802, section 3): the policy now, except for a
policy gradient whose own ratio carries it from before the batch's first update, where somebody looked, to now. At the level ``sequence_mean`` every token of a sequence
weighs the mean of those weights over the tokens of it that the term sees. The sequence is whole in a micro-batch, so one
pass over its rows, without gradient, is enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.modeling.loss_rows import LossRows
from trainer.modeling.scoring import score_rows
from trainer.objectives.base import MAX_LOG_RATIO
from trainer.terms import StageLoss


def before_update(policy: Tensor, old: Tensor | None) -> Tensor:
    """[R] log-probabilities of the policy before the batch's first update; where nobody looked, of the policy now."""
    policy = policy.detach()
    return policy if old is None else torch.where(old.isnan(), policy, old.to(policy.dtype))


def token_ratios(before: Tensor, rollout: Tensor) -> Tensor:
    """[R] policy / rollout, not yet truncated"""
    return (before - rollout).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@torch.no_grad()
def sequence_weights(loss: StageLoss, rows: LossRows, hidden: Tensor, head: Tensor) -> dict[str, Tensor]:
    """By name of each term at the level ``sequence_mean``: [Rt] weights; one look at every row where old ones are missing."""
    if not loss.needs_sequence_weights or rows.count == 0:
        return {}
    now = score_rows(hidden, head, rows.token_ids, temperature=loss.temperature).logprobs
    sequences = torch.from_numpy(rows.sequences).to(now.device)
    weights = {}
    for term in loss.terms:
        if term.importance_cap is not None and term.importance_level == "sequence_mean":
            before = before_update(now, rows.old_logprobs if term.has_own_ratio else None)
            ratios = token_ratios(before, rows.rollout_logprobs)
            indices = rows.terms[term.name].indices
            take = slice(None) if indices is None else torch.from_numpy(indices).to(ratios.device)
            weights[term.name] = _mean_by(sequences[take], ratios[take].clamp(max=term.importance_cap), int(rows.sequences[-1]) + 1)
    return weights


def _mean_by(groups: Tensor, values: Tensor, num_groups: int) -> Tensor:
    """[n] values -> [n] the mean of each one's group."""
    sums = values.new_zeros(num_groups).index_add_(0, groups, values)
    counts = values.new_zeros(num_groups).index_add_(0, groups, torch.ones_like(values))
    return (sums / counts)[groups]
