"""One term through the trainer's loss head: the path that training takes, in float64.

The policy's logits are the hidden states themselves and the output matrix is the identity, so the head's gradient for the
hidden states is the gradient for the logits. Legend: R rows, V vocabulary, K support size, H' width of a teacher's states.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.spec.composition import Composition, Term
from cluster.spec.teachers import EmaTeacher
from trainer.modeling.loss_head import LossJob
from trainer.modeling.loss_rows import LossRows, TermRows
from trainer.step_metrics import StepMetrics
from trainer.terms import stage_loss


def through_the_head(
    term: Term,
    logits: Tensor,
    token_ids: Tensor,
    *,
    weights: Tensor | None = None,
    teacher_head: Tensor | None = None,
    **fields: Any,
) -> tuple[Tensor, Tensor]:
    """(sum of the rows' values [], its gradient [R, V]) of logits [R, V]; ``fields`` are those of ``LossRows``, and advantages."""
    composition = Composition(teacher=EmaTeacher() if term.needs_teacher else None, terms=(term,))
    loss = stage_loss(composition, temperature=1.0)
    advantages = fields.pop("advantages", None)
    count = logits.shape[0]
    own = logits.log_softmax(-1).gather(1, token_ids[:, None])[:, 0]
    rows = LossRows(
        token_ids=token_ids,
        terms={
            term.name: TermRows(weights=torch.ones_like(own) if weights is None else weights, indices=None, advantages=advantages)
        },
        positions=np.arange(count),
        sequences=np.zeros(count, dtype=np.int64),
        taught=None,
        **({"rollout_logprobs": own} | fields),
    )
    metrics = StepMetrics(sums=loss.sum_names, means=loss.mean_names, maxima=loss.maximum_names)
    job = LossJob(
        loss=loss, rows=rows, denominators={term.name: 1.0}, metrics=metrics, teacher_head=teacher_head, max_chunk_rows=4
    )
    at = logits.clone().requires_grad_()
    value = job(at, torch.eye(logits.shape[1], dtype=logits.dtype))
    return value.detach(), torch.autograd.grad(value, at)[0]


def teacher_fields(
    teacher: Tensor, token_ids: Tensor, *, support_ids: Tensor | None = None, full: bool = False
) -> dict[str, Tensor]:
    """A teacher's log-probabilities [R, V] as rows bring them."""
    fields = {"teacher_logprobs": teacher.gather(1, token_ids[:, None])[:, 0]}
    if support_ids is not None:
        fields |= {"support_ids": support_ids, "teacher_support_logprobs": teacher.gather(1, support_ids)}
    return fields | ({"teacher_full_logprobs": teacher} if full else {})
