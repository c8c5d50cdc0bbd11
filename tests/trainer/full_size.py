"""One term over R rows at any vocabulary, by the loss head and by the naive version: for the tests of precision and memory and
for the benchmark. Logits are peaked as a model's are, and the teacher is near the policy.

Legend: R rows, V vocabulary, H hidden size. ``trainer`` and torch alone are imported, so that it runs where nothing else is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace

import naive_loss
import numpy as np
import torch

from trainer.modeling.loss_head import LossJob
from trainer.modeling.loss_rows import LossRows, TermRows
from trainer.step_metrics import StepMetrics
from trainer.terms import StageLoss, stage_loss

SUPPORTS = ("sampled", "top_k", "full")
KINDS = ("forward_kl", "reverse_kl", "jensen_shannon")


@dataclass(frozen=True, kw_only=True)
class Case:
    """The inputs of one size, from one seed."""

    hidden: torch.Tensor
    """[R, H]"""
    head: torch.Tensor
    """[V, H]"""
    teacher_hidden: torch.Tensor
    """[R, H]"""
    teacher_head: torch.Tensor
    """[V, H]"""
    token_ids: torch.Tensor
    """[R]"""
    support_ids: torch.Tensor
    """[R, K] of the policy's own most likely ids"""

    @property
    def rows(self) -> int:
        return self.hidden.shape[0]

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers in another precision."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Case(**{name: value.to(dtype) if value.is_floating_point() else value for name, value in values.items()})

    def row(self, index: int) -> Case:
        """One row alone."""
        part = slice(index, index + 1)
        names = ("hidden", "teacher_hidden", "token_ids", "support_ids")
        return replace(self, **{name: getattr(self, name)[part] for name in names})


def make_case(*, rows: int, vocabulary: int, hidden: int, k: int = 20, seed: int = 0, device: str = "cpu") -> Case:
    generator = torch.Generator().manual_seed(seed)
    spread = 1.5 * math.sqrt(math.log(vocabulary) / hidden)
    states = torch.randn(rows, hidden, generator=generator) * spread
    head = torch.randn(vocabulary, hidden, generator=generator)
    teacher = states + torch.randn(rows, hidden, generator=generator) * (0.3 * spread)
    token_ids = torch.randint(vocabulary, (rows,), generator=generator)
    ids = torch.cat([(part @ head.T).topk(min(k, vocabulary // 2), dim=-1).indices for part in states.split(8)])
    made = Case(hidden=states, head=head, teacher_hidden=teacher, teacher_head=head.clone(), token_ids=token_ids, support_ids=ids)
    return Case(**{field.name: getattr(made, field.name).to(device) for field in fields(made)})


def spec_of(kind: str, **changes) -> SimpleNamespace:
    """An objective's spec without the package that validates specs."""
    return SimpleNamespace(**({"kind": kind, "weight": 0.5, "entry_clip": None, "token_clip": None, "log_ratio_clip": None} | changes))


def stage_of(kind: str, support: str, k: int, **clips) -> StageLoss:
    term = SimpleNamespace(
        name="term",
        objective=spec_of(kind, **clips),
        support=SimpleNamespace(kind=support, k=k, support_from="rollout", join_sampled=False, tail="bucket"),
        coefficient=1.0,
        importance_cap=None,
        importance_level="token",
        needs_teacher=True,
        needs_reference=False,
    )
    return stage_loss(SimpleNamespace(experience=SimpleNamespace(kind="policy"), terms=(term,)), temperature=1.0)


def rows_of(case: Case, support: str) -> LossRows:
    """What ``collate`` would make of the case, every weight 1."""
    given = support == "top_k"
    teacher = _teacher_logprobs(case)
    return LossRows(
        token_ids=case.token_ids,
        rollout_logprobs=torch.zeros(case.rows, device=case.hidden.device),
        terms={"term": TermRows(weights=torch.ones(case.rows, device=case.hidden.device), indices=None)},
        positions=np.arange(case.rows),
        sequences=np.zeros(case.rows, dtype=np.int64),
        taught=None,
        support_ids=case.support_ids if given else None,
        teacher_logprobs=teacher[:, 0],
        teacher_support_logprobs=teacher[:, 1:] if given else None,
        teacher_hidden=case.teacher_hidden if support == "full" else None,
    )


@torch.no_grad()
def _teacher_logprobs(case: Case) -> torch.Tensor:
    """[R, 1 + K] of the sampled token and the support, exact up to rounding to the case's precision: they are an input"""
    ids = torch.cat((case.token_ids[:, None], case.support_ids), dim=1)
    head, parts = case.teacher_head.double(), zip(case.teacher_hidden.double().split(8), ids.split(8), strict=True)
    exact = torch.cat([torch.log_softmax(states @ head.T, -1).gather(1, of) for states, of in parts])
    return exact.to(torch.float64 if case.hidden.dtype == torch.float64 else torch.float32)


def run_ours(case: Case, loss: StageLoss, rows: LossRows, *, max_chunk_rows: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> (loss, dh, dW)"""
    hidden, head = case.hidden.detach().requires_grad_(), case.head.detach().requires_grad_()
    metrics = StepMetrics(sums=loss.sum_names, means=loss.mean_names, maxima=loss.maximum_names, device=hidden.device)
    job = LossJob(
        loss=loss, rows=rows, denominators={"term": float(case.rows)}, metrics=metrics, teacher_head=case.teacher_head,
        max_chunk_rows=max_chunk_rows,
    )  # fmt: skip
    total = job(hidden, head)
    total.backward()
    return total.detach(), hidden.grad, head.grad


def run_naive(case: Case, loss: StageLoss, support: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """-> (loss, dh, dW)"""
    hidden, head = case.hidden.detach().requires_grad_(), case.head.detach().requires_grad_()
    spec = loss.terms[0].spec
    values = naive_loss.at_once(
        spec.kind, spec, hidden, head, case.teacher_hidden, case.teacher_head,
        support_ids=case.support_ids if support == "top_k" else None,
        token_ids=case.token_ids if support == "sampled" else None,
    )  # fmt: skip
    total = values.mean()
    total.backward()
    return total.detach(), hidden.grad, head.grad
