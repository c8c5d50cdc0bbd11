"""The loss head: all terms of a stage over row chunks in one pass, with the gradient formed in the forward pass.

Legend: R rows of the micro-batch, C rows of a chunk, H hidden size, V vocabulary, K support size.
Per chunk: logits (float32, divided by the temperature), one full-vocabulary log-softmax, the supports gathered from it,
every term's row values times coefficient x importance weight x token weight / global denominator, and the gradient with
respect to the chunk's logits at once, folded into dh [R, H] and dW [V, H]. The one invariant: nothing of size R x V
exists beyond a chunk, and the sum over chunks, micro-batches and ranks is the loss over the global denominators.

Where gradients stop: teacher quantities, advantages, recorded log-probabilities and importance weights are constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.modeling.loss_rows import LossRows, TermRows
from trainer.modeling.scoring import chunk_rows, row_logits
from trainer.objectives.base import MAX_LOG_RATIO, RowInputs
from trainer.objectives.supports import with_tail_bucket
from trainer.step_metrics import StepMetrics
from trainer.terms import LossTerm, StageLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class LossJob:
    """Everything the loss of one micro-batch needs besides hidden states and head weight."""

    loss: StageLoss
    rows: LossRows
    denominators: dict[str, float]
    """Global, per term; a term whose denominator is 0 contributes nothing."""
    metrics: StepMetrics
    teacher_head: Tensor | None = None
    """[V, H] with a full support."""
    max_chunk_rows: int | None = None
    """Rows of a chunk; by the vocabulary and the device where None."""

    def __call__(self, hidden: Tensor, head: Tensor) -> Tensor:
        """hidden [R, H], head [V, H] -> this micro-batch's share of the global loss, with its gradients attached."""
        return _LossHead.apply(hidden, head, self)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """Log-probabilities of one chunk; the policy's carry gradient back to the chunk's logits."""

    start: int
    stop: int
    policy: Tensor
    """[C, V]"""
    policy_sampled: Tensor
    """[C]"""
    teacher: Tensor | None
    """[C, V] with a full support"""
    policy_top_k: Tensor | None
    """[C, K + 1]"""
    teacher_top_k: Tensor | None
    """[C, K + 1]"""

    def supports(self, kind: str) -> tuple[Tensor | None, Tensor | None]:
        return {"full": (self.policy, self.teacher), "top_k": (self.policy_top_k, self.teacher_top_k), "sampled": (None, None)}[kind]


class _LossHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, job: LossJob) -> Tensor:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        hidden_gradient = torch.empty_like(hidden)
        head_gradient = torch.zeros(head.shape, dtype=wide, device=head.device)
        total = torch.zeros((), dtype=wide, device=hidden.device)
        rows = job.max_chunk_rows or chunk_rows(head.shape[0], hidden.device)
        for start in range(0, job.rows.count, rows):
            stop = min(start + rows, job.rows.count)
            hidden_chunk = hidden[start:stop].detach()
            logits = row_logits(hidden_chunk, head.detach(), job.loss.temperature).requires_grad_()
            with torch.enable_grad():
                chunk = _chunk(job, logits, start, stop, hidden.dtype)
                value = _chunk_loss(job, chunk)
            _record(job, chunk)
            if not value.requires_grad:
                hidden_gradient[start:stop] = 0.0
                continue
            (gradient,) = torch.autograd.grad(value, logits)
            total += value.detach()
            _fold_in(gradient, hidden_chunk, head.detach(), job.loss.temperature, hidden_gradient[start:stop], head_gradient)
        job.metrics.add_sum("loss/total", total.double())
        ctx.save_for_backward(hidden_gradient, head_gradient.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):
        hidden_gradient, head_gradient = ctx.saved_tensors
        return (gradient * hidden_gradient).to(hidden_gradient.dtype), (gradient * head_gradient).to(head_gradient.dtype), None


def _fold_in(gradient: Tensor, hidden: Tensor, head: Tensor, temperature: float, hidden_out: Tensor, head_sum: Tensor) -> None:
    """d logits [C, V] -> the chunk's dh, and dW added; in the hidden states' precision, summed in float32."""
    if temperature != 1.0:
        gradient = gradient / temperature
    gradient = gradient.to(hidden.dtype)
    hidden_out.copy_(gradient @ head.to(hidden.dtype))
    if hidden.dtype == head_sum.dtype:
        head_sum.addmm_(gradient.T, hidden)
    elif hidden.is_cuda:
        head_sum += torch.mm(gradient.T, hidden, out_dtype=torch.float32)
    else:
        head_sum.addmm_(gradient.T.float(), hidden.float())


def _chunk(job: LossJob, logits: Tensor, start: int, stop: int, hidden_dtype: torch.dtype) -> _Chunk:
    rows, part = job.rows, slice(start, stop)
    policy = torch.log_softmax(logits, dim=-1)
    policy_top_k = teacher_top_k = teacher = None
    if rows.support_ids is not None:
        policy_top_k = with_tail_bucket(policy.gather(1, rows.support_ids[part]))
        teacher_top_k = with_tail_bucket(rows.teacher_support_logprobs[part].to(policy.dtype))
    if rows.teacher_hidden is not None:
        with torch.no_grad():
            # the teacher's head product runs in the policy's precision: float32 products are 12 times slower on a GPU
            states, head = rows.teacher_hidden[part].to(hidden_dtype), job.teacher_head.to(hidden_dtype)
            teacher = torch.log_softmax(row_logits(states, head, job.loss.temperature), dim=-1)
    return _Chunk(
        start=start,
        stop=stop,
        policy=policy,
        policy_sampled=policy.gather(1, rows.token_ids[part, None])[:, 0],
        teacher=teacher,
        policy_top_k=policy_top_k,
        teacher_top_k=teacher_top_k,
    )


def _chunk_loss(job: LossJob, chunk: _Chunk) -> Tensor:
    total = torch.zeros((), dtype=chunk.policy.dtype, device=chunk.policy.device)
    for term in job.loss.terms:
        denominator = job.denominators.get(term.name, 0.0)
        own = _rows_of(job.rows.terms[term.name], chunk)
        if denominator == 0.0 or own is None:
            continue
        take, weights = own
        inputs = _row_inputs(job, chunk, term, take, weights)
        outcome = term.objective(inputs, term.spec)
        values = outcome.values if term.importance_cap is None else outcome.values * _importance(job, term, inputs)
        for name, metric in outcome.metrics.items():
            job.metrics.add_rows(f"{term.name}/{name}", metric)
        value = (values * weights.to(values.dtype)).sum() / denominator
        job.metrics.add_sum(f"loss/{term.name}", value.detach().double())
        total = total + term.coefficient * value
    return total


def _rows_of(term_rows: TermRows, chunk: _Chunk) -> tuple[Tensor | None, Tensor] | None:
    """(row numbers within the chunk, or None for all; weights) of a term; None where the chunk has no such row."""
    if term_rows.indices is None:
        return None, term_rows.weights[chunk.start : chunk.stop]
    first, last = np.searchsorted(term_rows.indices, (chunk.start, chunk.stop))
    if first == last:
        return None
    take = torch.from_numpy(term_rows.indices[first:last] - chunk.start).to(chunk.policy.device)
    return take, term_rows.weights[first:last]


def _row_inputs(job: LossJob, chunk: _Chunk, term: LossTerm, take: Tensor | None, weights: Tensor) -> RowInputs:
    rows, part = job.rows, slice(chunk.start, chunk.stop)

    def pick(values: Tensor | None) -> Tensor | None:
        return values if values is None or take is None else values.index_select(0, take)

    policy_support, teacher_support = chunk.supports(term.support)
    policy = pick(chunk.policy_sampled)
    return RowInputs(
        policy_logprobs=policy,
        policy_support_logprobs=pick(policy_support),
        rollout_logprobs=pick(rows.rollout_logprobs[part]),
        # one update per batch: the policy before it is the policy now. With an importance weight the engine's probability
        # enters there, and must not enter a second time through the ratio.
        old_logprobs=None if term.importance_cap is None else policy.detach(),
        teacher_logprobs=None if rows.teacher_logprobs is None else pick(rows.teacher_logprobs[part]),
        teacher_support_logprobs=pick(teacher_support),
        advantages=pick(rows.advantages[part]),
        token_weights=weights,
    )


def _importance(job: LossJob, term: LossTerm, inputs: RowInputs) -> Tensor:
    """[Rt] truncated importance weights min(policy / rollout, cap) of the sampled tokens; no gradient (SDPO, eq. 13)."""
    log_ratio = (inputs.policy_logprobs.detach() - inputs.rollout_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    job.metrics.add_rows(f"{term.name}/importance_mean", ratio)
    job.metrics.add_rows(f"{term.name}/importance_capped_share", ratio > term.importance_cap)
    return ratio.clamp(max=term.importance_cap)


@torch.no_grad()
def _record(job: LossJob, chunk: _Chunk) -> None:
    """Metrics of the chunk's rows that are not one term's own."""
    rows, metrics, part = job.rows, job.metrics, slice(chunk.start, chunk.stop)
    policy, sampled = chunk.policy.detach(), chunk.policy_sampled.detach()
    probabilities = policy.exp()
    metrics.add_rows("policy/entropy_nats", -(probabilities * policy).sum(-1))
    if job.loss.has_rollout_logprobs:
        difference = sampled - rows.rollout_logprobs[part]
        metrics.add_rows("policy/mismatch_nats_mean", difference.abs())
        metrics.add_rows("policy/sampled_kl_to_rollout_nats", -difference)
        metrics.add_maximum("policy/mismatch_nats_max", difference.abs())
    if job.loss.has_teacher and rows.teacher_logprobs is not None:
        _record_teacher(job, chunk, probabilities)


def _record_teacher(job: LossJob, chunk: _Chunk, probabilities: Tensor) -> None:
    """KL(policy || teacher) on the widest support there is, its sampled estimate, and where the teacher likes the token."""
    rows, metrics = job.rows, job.metrics
    taught = _taught_in(rows.taught, chunk)
    if taught is not None and taught.shape[0] == 0:
        return

    def pick(values: Tensor) -> Tensor:
        return values if taught is None else values.index_select(0, taught)

    advantage = pick(rows.teacher_logprobs[chunk.start : chunk.stop]) - pick(chunk.policy_sampled.detach())
    metrics.add_rows("teacher/positive_share", advantage > 0)
    metrics.add_rows("teacher/sampled_kl_nats", -advantage)
    widest = job.loss.widest_support
    policy_support, teacher_support = chunk.supports(widest)
    if policy_support is None:
        metrics.add_rows("teacher/kl_nats", -advantage)
    else:
        weights = probabilities if widest == "full" else policy_support.detach().exp()
        metrics.add_rows("teacher/kl_nats", pick((weights * (policy_support.detach() - teacher_support)).sum(-1)))
    if chunk.policy_top_k is not None:
        metrics.add_rows("policy/support_mass", pick(chunk.policy_top_k.detach()[:, :-1].exp().sum(-1)))
        metrics.add_rows("teacher/support_mass", pick(chunk.teacher_top_k[:, :-1].exp().sum(-1)))


def _taught_in(taught: np.ndarray | None, chunk: _Chunk) -> Tensor | None:
    if taught is None:
        return None
    first, last = np.searchsorted(taught, (chunk.start, chunk.stop))
    return torch.from_numpy(taught[first:last] - chunk.start).to(chunk.policy.device)
