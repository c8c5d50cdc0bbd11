"""One chunk of rows: the distributions of both sides, and what is gathered from them.

Legend: C rows of the chunk, V vocabulary, K columns of the top-K support (K + 1 with the sampled token joined). The one
invariant: everything here is a function of the chunk's rows alone, in buffers that ``buffer_names`` announces.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.modeling.loss_metrics import ChunkRecord, read_overlap
from trainer.modeling.loss_rows import LossRows
from trainer.modeling.scoring import normalise, row_logits
from trainer.modeling.workspace import Workspace
from trainer.objectives.clips import has_clips
from trainer.objectives.full_vocabulary import FullRows, Scratch
from trainer.objectives.supports import present_columns
from trainer.terms import StageLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Log-probabilities of one chunk. ``sampled``, ``entropies`` and ``top_k`` are leaves that objectives differentiate."""

    part: slice
    policy: Tensor
    """[C, V] log p"""
    probabilities: Tensor
    """[C, V] p"""
    entropy_entries: Tensor
    """[C, V] p log p; gone with the first dense part where no term needs it"""
    full: FullRows | None
    """with the teacher's whole distribution"""
    token_ids: Tensor
    """[C]"""
    sampled: Tensor
    """[C]"""
    entropies: Tensor
    """[C]"""
    support_ids: Tensor | None
    """[C, K]"""
    present: Tensor | None
    """bool [C, K]; None where all columns count"""
    top_k: Tensor | None
    """[C, K]"""
    teacher_top_k: Tensor | None
    """[C, K]"""
    workspace: Workspace
    record: ChunkRecord


def buffer_names(loss: StageLoss) -> tuple[str, ...]:
    """The [C, V] buffers that a chunk of the stage needs; ``gradient`` is scratch until the first dense part is added."""
    names = ["policy", "probabilities", "gradient"]
    if any(term.kind == "entropy_bonus" for term in loss.terms):
        names.append("entropy")
    if not loss.needs_full_teacher:
        return tuple(names)
    names.append("teacher")
    full = [term for term in loss.terms if term.support == "full"]
    plain = [term for term in full if term.kind == "reverse_kl" and not has_clips(term.spec)]
    if len(plain) < len(full):
        names += ["ratios", "slopes"] + (["reverse"] if plain else [])
    if any(term.kind == "jensen_shannon" for term in full):
        names.append("teacher_probabilities")
    return tuple(names)


@torch.no_grad()
def read_chunk(
    loss: StageLoss, rows: LossRows, part: slice, hidden: Tensor, head: Tensor, teacher_head: Tensor | None, workspace: Workspace
) -> Chunk:
    """hidden [C, H], head [V, H] -> everything that any term of the stage reads."""
    count = part.stop - part.start

    def take(name: str) -> Tensor:
        return workspace.take(name, count)

    policy = _logits(hidden, head, loss.temperature, take("policy"))
    probabilities = normalise(policy, take("probabilities"))
    entropy_entries = torch.mul(probabilities, policy, out=take("entropy" if "entropy" in workspace.names else "gradient"))
    token_ids, entropies = rows.token_ids[part], -entropy_entries.sum(-1)
    sampled = policy.gather(1, token_ids[:, None])[:, 0]
    teacher = _teacher(loss, rows, part, hidden, teacher_head, take) if rows.has_full_teacher else None
    ids, teacher_top_k = _support(loss, rows, part, policy, teacher)
    present = None if ids is None else present_columns(ids, join_sampled=loss.top_k.join_sampled)
    top_k = None if ids is None else policy.gather(1, ids)
    record = ChunkRecord(sampled=sampled, entropies=entropies)
    if loss.has_teacher:
        record.overlap = read_overlap(loss, rows, part, policy, teacher, ids)
    full = None
    if teacher is not None:
        # kept for a plain reverse KL; where nothing else reads the teacher they take its place, else they are for the record
        place = next((name for name in ("reverse", "ratios") if name in workspace.names), "teacher")
        entries = torch.sub(policy, teacher, out=take(place)).mul_(probabilities)
        full = FullRows(
            policy=policy, probabilities=probabilities, teacher=teacher, reverse_entries=entries, reverse=entries.sum(-1)
        )
        record.reverse = full.reverse
    record.read_support(top_k, teacher_top_k, present)
    return Chunk(
        part=part,
        policy=policy,
        probabilities=probabilities,
        entropy_entries=entropy_entries,
        full=full,
        token_ids=token_ids,
        sampled=sampled.clone().requires_grad_(),
        entropies=entropies.clone().requires_grad_(),
        support_ids=ids,
        present=present,
        top_k=None if top_k is None else top_k.requires_grad_(),
        teacher_top_k=teacher_top_k,
        workspace=workspace,
        record=record,
    )


def _logits(hidden: Tensor, head: Tensor, temperature: float, out: Tensor) -> Tensor:
    """[C, V], divided by the temperature, in ``out``"""
    if hidden.is_cuda and hidden.dtype not in (torch.float32, torch.float64):
        return out.copy_(row_logits(hidden, head, temperature))
    torch.mm(hidden.to(head.dtype), head.T, out=out)
    return out if temperature == 1.0 else out.div_(temperature)


def _teacher(loss: StageLoss, rows: LossRows, part: slice, hidden: Tensor, head: Tensor | None, take: Scratch) -> Tensor:
    """[C, V] log q: as sent, or from the teacher's states; their product runs in the policy's precision and their own width."""
    if rows.teacher_hidden is None:
        return take("teacher").copy_(rows.teacher_full_logprobs[part])
    if head is None:
        raise ValueError("the rows carry teacher_hidden, but there is no teacher_head to read it with")
    teacher = _logits(rows.teacher_hidden[part].to(hidden.dtype), head, loss.temperature, take("teacher"))
    normalise(teacher, take("gradient"))
    return teacher


def _support(loss: StageLoss, rows: LossRows, part: slice, policy: Tensor, teacher: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """(ids [C, K], the teacher's log-probabilities there) of the stage's top-K support."""
    if "top_k" not in loss.supports:
        return None, None
    if not loss.ranks_in_chunk:
        if rows.support_ids is None:
            return None, None
        return rows.support_ids[part], rows.teacher_support_logprobs[part].to(policy.dtype)
    if teacher is None:
        return None, None
    ids = policy.topk(min(loss.top_k.k, policy.shape[1]), dim=-1).indices
    if loss.top_k.join_sampled:
        ids = torch.cat((ids, rows.token_ids[part, None]), dim=1)
    return ids, teacher.gather(1, ids)
