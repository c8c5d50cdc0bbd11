"""The terms of a stage on one chunk: their values, and the gradient with respect to the chunk's logits.

Legend: C rows of the chunk, Ct those of one term, V vocabulary, K columns of the top-K support. The one invariant: a term's
value is summed over its own rows, weighed and divided by its own global denominator, and so is its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.modeling.importance import before_update, token_ratios
from trainer.modeling.logit_gradient import LogitGradient
from trainer.modeling.loss_chunk import Chunk
from trainer.modeling.loss_rows import LossRows
from trainer.objectives.base import RowInputs
from trainer.objectives.full_vocabulary import full_divergence
from trainer.objectives.supports import complete_support
from trainer.step_metrics import StepMetrics
from trainer.terms import LossTerm, StageLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOutcome:
    """A chunk's share of the loss."""

    value: Tensor
    """float64 []"""
    gradient: Tensor | None
    """[C, V]; None where no term has a row in the chunk"""


def chunk_loss(
    loss: StageLoss,
    rows: LossRows,
    chunk: Chunk,
    denominators: dict[str, float],
    metrics: StepMetrics,
    sequence_weights: dict[str, Tensor],
) -> ChunkOutcome:
    """Every term's values and gradients; small tensors through autograd, the full vocabulary in closed form."""
    count = chunk.sampled.shape[0]
    gradient = LogitGradient(lambda: chunk.workspace.take("gradient", count))
    total = torch.zeros((), dtype=torch.float64, device=chunk.policy.device)
    small: list[Tensor] = []
    for term in loss.terms:
        denominator = denominators.get(term.name, 0.0)
        taken = _rows_of(rows, term, chunk)
        if denominator == 0.0 or taken is None:
            continue
        weights = taken.weights.to(chunk.policy.dtype)
        if term.importance_cap is not None:
            weights = weights * _importance(term, rows, chunk, taken, metrics, sequence_weights.get(term.name))
        if term.support == "full":
            values = _full_term(term, chunk, taken, weights * (term.coefficient / denominator), gradient, metrics)
        else:
            with torch.enable_grad():
                outcome = term.objective(_row_inputs(rows, chunk, term, taken), term.spec)
                small.append((outcome.values * (weights * (term.coefficient / denominator))).sum())
            values = outcome.values.detach()
            for name, metric in outcome.metrics.items():
                metrics.add_rows(f"{term.name}/{name}", metric)
        value = (values * weights).sum(dtype=torch.float64) / denominator
        metrics.add_sum(f"loss/{term.name}", value)
        total += term.coefficient * value
    _add_small(small, chunk, gradient)
    return ChunkOutcome(value=total, gradient=gradient.finish(chunk.probabilities))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taken:
    """The rows of a chunk that carry a term."""

    first: int
    last: int
    """from, to among the term's rows of the micro-batch"""
    index: Tensor | None
    """int64 [Ct] within the chunk; None for all"""
    weights: Tensor
    """[Ct]"""

    def pick(self, values: Tensor | None) -> Tensor | None:
        return values if values is None or self.index is None else values.index_select(0, self.index)

    def spread(self, values: Tensor, count: int) -> Tensor:
        """[Ct] -> [C], zero elsewhere"""
        return values if self.index is None else values.new_zeros(count).index_copy_(0, self.index, values)


def _rows_of(rows: LossRows, term: LossTerm, chunk: Chunk) -> _Taken | None:
    """None where the chunk has no row of the term."""
    term_rows = rows.terms[term.name]
    first, last, index = chunk.part.start, chunk.part.stop, None
    if term_rows.indices is not None:
        first, last = (int(bound) for bound in np.searchsorted(term_rows.indices, (first, last)))
        if first == last:
            return None
        index = torch.from_numpy(term_rows.indices[first:last] - chunk.part.start).to(chunk.policy.device)
    return _Taken(first=first, last=last, index=index, weights=term_rows.weights[first:last])


def _importance(
    term: LossTerm, rows: LossRows, chunk: Chunk, taken: _Taken, metrics: StepMetrics, of_sequences: Tensor | None
) -> Tensor:
    """[Ct] truncated importance weights; metrics are of the tokens' own ratios before they are truncated or averaged."""
    old = rows.old_logprobs[chunk.part] if rows.old_logprobs is not None and term.has_own_ratio else None
    ratios = taken.pick(token_ratios(before_update(chunk.sampled, old), rows.rollout_logprobs[chunk.part]))
    metrics.add_rows(f"{term.name}/importance_mean", ratios)
    metrics.add_rows(f"{term.name}/importance_capped_share", ratios > term.importance_cap)
    if of_sequences is not None:
        return of_sequences[taken.first : taken.last].to(ratios.dtype)
    return ratios.clamp(max=term.importance_cap)


def _row_inputs(rows: LossRows, chunk: Chunk, term: LossTerm, taken: _Taken) -> RowInputs:
    def of_chunk(values: Tensor | None) -> Tensor | None:
        return None if values is None else taken.pick(values[chunk.part])

    policy = taken.pick(chunk.sampled)
    policy_support = teacher_support = outside = None
    if term.support == "top_k":
        present = taken.pick(chunk.present)
        policy_support = complete_support(taken.pick(chunk.top_k), term.tail, present)
        teacher_support = complete_support(taken.pick(chunk.teacher_top_k), term.tail, present)
        if term.tail == "sampled_correction":
            outside = taken.pick((chunk.support_ids != chunk.token_ids[:, None]).all(-1))
    advantages = rows.terms[term.name].advantages
    return RowInputs(
        policy_logprobs=policy,
        policy_support_logprobs=policy_support,
        policy_entropies=taken.pick(chunk.entropies),
        rollout_logprobs=of_chunk(rows.rollout_logprobs),
        old_logprobs=None if term.ratio_base == "rollout" else before_update(policy, of_chunk(rows.old_logprobs)),
        teacher_logprobs=of_chunk(rows.teacher_logprobs),
        teacher_support_logprobs=teacher_support,
        sampled_outside=outside,
        reference_logprobs=of_chunk(rows.reference_logprobs),
        advantages=None if advantages is None else advantages[taken.first : taken.last].to(policy.dtype),
        token_weights=taken.weights,
    )


def _full_term(term: LossTerm, chunk: Chunk, taken: _Taken, scale: Tensor, gradient: LogitGradient, metrics: StepMetrics) -> Tensor:
    """[Ct] values; adds the gradient of the rows times ``scale`` [Ct]."""
    count = chunk.sampled.shape[0]
    outcome = full_divergence(chunk.full, term.spec, lambda name: chunk.workspace.take(name, count))
    spread = taken.spread(scale, count)
    if outcome.free is not None:
        spread = torch.where(outcome.free, spread, 0.0)
    gradient.add_dense(outcome.slopes, outcome.slope_sums, spread)
    if outcome.held is not None:
        metrics.add_rows(f"{term.name}/clipped_share", taken.pick(outcome.held))
    return taken.pick(outcome.values)


def _add_small(small: list[Tensor], chunk: Chunk, gradient: LogitGradient) -> None:
    """What autograd knows of [C] and [C, K] tensors, taken on to the logits."""
    if not small:
        return
    leaves = [chunk.sampled, chunk.entropies] + ([] if chunk.top_k is None else [chunk.top_k])
    sampled, entropies, *top_k = torch.autograd.grad(small, leaves, allow_unused=True)
    if sampled is not None:
        gradient.add_columns(chunk.token_ids[:, None], sampled[:, None])
    if top_k and top_k[0] is not None:
        gradient.add_columns(chunk.support_ids, top_k[0])
    if entropies is not None:
        # H = -sum p log p; its slopes with respect to log p are -p log p, up to a multiple of p
        gradient.add_dense(chunk.entropy_entries, -chunk.entropies.detach(), -entropies)
