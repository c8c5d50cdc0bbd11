"""The loss head: all terms of a stage over row chunks in one pass, with the gradient formed in the forward pass.

Legend: R rows of the micro-batch, C rows of a chunk, H hidden size, H' width of the teacher's states, V vocabulary.
Per chunk: logits (float32, divided by the temperature), one full-vocabulary log-softmax, the supports gathered from it,
every term's row values times coefficient x importance weight x token weight / global denominator, and the gradient with
respect to the chunk's logits in closed form, folded into dh [R, H] and dW [V, H]. The one invariant: nothing of size R x V
exists beyond a chunk, and the sum over chunks, micro-batches and ranks is the loss over the global denominators.

Autograd sees [C] and [C, K] tensors only; the step from there to [C, V] is algebra (``logit_gradient.py``), and so are the
divergences over the full vocabulary (``objectives/full_vocabulary.py``).
Where gradients stop: teacher quantities, advantages, recorded log-probabilities and importance weights are constants.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.modeling.importance import sequence_weights
from trainer.modeling.loss_chunk import buffer_names, read_chunk
from trainer.modeling.loss_metrics import ChunkRecord, record_rows
from trainer.modeling.loss_rows import LossRows
from trainer.modeling.loss_terms import chunk_loss
from trainer.modeling.scoring import chunk_rows
from trainer.modeling.workspace import Workspace
from trainer.step_metrics import StepMetrics
from trainer.terms import StageLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class LossJob:
    """Everything the loss of one micro-batch needs besides hidden states and head weight."""

    loss: StageLoss
    rows: LossRows
    denominators: dict[str, float]
    """Global, per term; a term whose denominator is 0 contributes nothing."""
    metrics: StepMetrics
    teacher_head: Tensor | None = None
    """[V, H'] with ``teacher_hidden``."""
    max_chunk_rows: int | None = None
    """Rows of a chunk; by the vocabulary and the device where None."""

    def __call__(self, hidden: Tensor, head: Tensor) -> Tensor:
        """hidden [R, H], head [V, H] -> this micro-batch's share of the global loss, with its gradients attached."""
        return _LossHead.apply(hidden, head, self)


class _LossHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, head: Tensor, job: LossJob) -> Tensor:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        hidden_gradient = torch.zeros_like(hidden)
        head_gradient = torch.zeros(head.shape, dtype=wide, device=head.device)
        total = _run_chunks(hidden.detach(), head.detach(), job, hidden_gradient, head_gradient)
        job.metrics.add_sum("loss/total", total)
        # not save_for_backward: a saved tensor could not be handed on without a copy of its size
        ctx.gradients = (hidden_gradient, head_gradient.to(head.dtype))
        return total.to(wide)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        if ctx.gradients is None:
            raise RuntimeError("the loss head's gradients were handed out already: backward can run once")
        hidden_gradient, head_gradient = ctx.gradients
        ctx.gradients = None
        return hidden_gradient.mul_(gradient.to(hidden_gradient.dtype)), head_gradient.mul_(gradient.to(head_gradient.dtype)), None


def _run_chunks(hidden: Tensor, head: Tensor, job: LossJob, hidden_gradient: Tensor, head_gradient: Tensor) -> Tensor:
    """The loss, float64 []; fills dh and adds to dW."""
    product_head = _for_products(head, hidden)
    teacher_head = None if job.teacher_head is None else _for_products(job.teacher_head, hidden)
    weights = sequence_weights(job.loss, job.rows, hidden, product_head)
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    buffers = buffer_names(job.loss)
    rows = min(job.max_chunk_rows or chunk_rows(head.shape[0], hidden.device, buffers=len(buffers)), max(job.rows.count, 1))
    workspace = Workspace(buffers, rows, head.shape[0], head_gradient.dtype, hidden.device)
    records: list[ChunkRecord] = []
    for start in range(0, job.rows.count, rows):
        part = slice(start, min(start + rows, job.rows.count))
        chunk = read_chunk(job.loss, job.rows, part, hidden[part], product_head, teacher_head, workspace)
        outcome = chunk_loss(job.loss, job.rows, chunk, job.denominators, job.metrics, weights)
        total += outcome.value
        if outcome.gradient is not None:
            _fold_in(outcome.gradient, hidden[part], product_head, job.loss.temperature, hidden_gradient[part], head_gradient)
        records.append(chunk.record)
    if records:
        record_rows(job.loss, job.rows, records, job.metrics)
    return total


def _for_products(matrix: Tensor, hidden: Tensor) -> Tensor:
    """A head in the precision its products run in, converted once: the hidden states', float32 for half precision on a CPU."""
    half_on_cpu = hidden.dtype not in (torch.float32, torch.float64) and not hidden.is_cuda
    return matrix.to(device=hidden.device, dtype=torch.float32 if half_on_cpu else hidden.dtype)


def _fold_in(gradient: Tensor, hidden: Tensor, head: Tensor, temperature: float, hidden_out: Tensor, head_sum: Tensor) -> None:
    """d logits [C, V] -> the chunk's dh, and dW added; in the precision of the products, summed in float32."""
    if temperature != 1.0:
        gradient.div_(temperature)
    gradient = gradient.to(hidden.dtype).to(head.dtype)  # rounded as the policy computes, also where a CPU then multiplies wide
    hidden_out.copy_(gradient @ head)
    if head.dtype == head_sum.dtype:
        head_sum.addmm_(gradient.T, hidden.to(head.dtype))
    else:
        head_sum += torch.mm(gradient.T, hidden, out_dtype=torch.float32)
