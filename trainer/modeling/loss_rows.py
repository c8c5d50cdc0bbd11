"""Training samples of one micro-batch as tensors: the pack the model reads, and the rows the loss head reads.

Only rows with a weight in some term are selected; the rest of a completion is context. Legend: R selected rows, Rt those
of one term, K support size, V vocabulary, H' width of the teacher's states (the policy's, or more of a mixed teacher).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cluster.messages import TrainingSample
from trainer.modeling.packed import PackedSequences, pack_sequences
from trainer.terms import LossTerm, StageLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class TermRows:
    """The rows that carry a term."""

    weights: Tensor
    """float32 [Rt], all non-zero"""
    indices: np.ndarray | None
    """int64 [Rt], rising row numbers on the host; None where every row carries the term."""
    advantages: Tensor | None = None
    """float32 [Rt] of a policy gradient"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRows:
    """What the loss head reads besides hidden states. Rows of samples without teacher hold zeros and no teacher term."""

    token_ids: Tensor
    """int64 [R]"""
    rollout_logprobs: Tensor
    """float32 [R]"""
    terms: dict[str, TermRows]
    positions: np.ndarray
    """int64 [R]: which token of its completion a row predicts"""
    sequences: np.ndarray
    """int64 [R], rising: which sample of the micro-batch a row is of"""
    taught: np.ndarray | None
    """int64 rows of samples with a teacher's scores; None where all rows are."""
    old_logprobs: Tensor | None = None
    """float32 [R]; NaN for samples whose policy before the first update nobody looked at"""
    reference_logprobs: Tensor | None = None
    """float32 [R]"""
    support_ids: Tensor | None = None
    """int64 [R, K]"""
    teacher_logprobs: Tensor | None = None
    """float32 [R]"""
    teacher_support_logprobs: Tensor | None = None
    """float32 [R, K]"""
    teacher_hidden: Tensor | None = None
    """float32 [R, H']"""
    teacher_full_logprobs: Tensor | None = None
    """float32 [R, V], instead of ``teacher_hidden``"""

    @property
    def count(self) -> int:
        return self.token_ids.shape[0]

    @property
    def has_full_teacher(self) -> bool:
        return self.teacher_hidden is not None or self.teacher_full_logprobs is not None


def collate(
    samples: Sequence[TrainingSample], loss: StageLoss, *, device: str | torch.device = "cpu"
) -> tuple[PackedSequences, LossRows]:
    """Pack the samples of a micro-batch; rollouts of one problem share its prompt. Raises ValueError where a term's inputs are missing
    on a sample that carries it."""
    for sample in samples:
        _check(sample, loss)
    _check_payload(samples)
    pairs = [(sample.prompt_token_ids, sample.completion_token_ids) for sample in samples]
    weights = {term.name: _per_token(samples, "term_weights", term.name) for term in loss.terms}
    selected = np.flatnonzero(np.any([values != 0 for values in weights.values()], axis=0))
    packed = pack_sequences(pairs, device=device, share_prompts=True)
    rows = torch.from_numpy(selected).to(device)
    packed = replace(packed, row_indices=packed.row_indices[rows], target_ids=packed.target_ids[rows])
    take = _Take(samples, selected, device)
    lengths = [len(sample.completion_token_ids) for sample in samples]
    given_top_k = "top_k" in loss.supports and not loss.ranks_in_chunk
    return packed, LossRows(
        token_ids=packed.target_ids,
        rollout_logprobs=take.floats([sample.rollout_logprobs for sample in samples]),
        terms={term.name: _term_rows(term, samples, weights[term.name], selected, device) for term in loss.terms},
        positions=np.concatenate([np.arange(length) for length in lengths])[selected],
        sequences=np.repeat(np.arange(len(samples)), lengths)[selected],
        taught=_taught(samples, selected) if loss.has_teacher else None,
        old_logprobs=take.optional("old_logprobs", missing=np.nan),
        reference_logprobs=take.optional("reference_logprobs") if any(term.needs_reference for term in loss.terms) else None,
        support_ids=take.optional("support_ids", torch.int64) if given_top_k else None,
        teacher_logprobs=take.optional("teacher_logprobs") if loss.has_teacher else None,
        teacher_support_logprobs=take.optional("teacher_support_logprobs") if given_top_k else None,
        teacher_hidden=take.optional("teacher_hidden") if loss.needs_full_teacher else None,
        teacher_full_logprobs=take.optional("teacher_full_logprobs") if loss.needs_full_teacher else None,
    )


def _check(sample: TrainingSample, loss: StageLoss) -> None:
    for term in loss.terms:
        if term.name not in sample.term_weights:
            continue
        missing = [name for name in _needed(term, loss) if not _has(sample, name)]
        if term.kind == "policy_gradient" and term.name not in sample.term_advantages:
            missing.append("term_advantages")
        if missing:
            raise ValueError(f"sample {sample.sample_id} carries term {term.name} ({term.support}) without {missing}")
    if sample.support_ids is not None and "top_k" in loss.supports and not loss.ranks_in_chunk:
        wanted, width = loss.top_k.k + int(loss.top_k.join_sampled), sample.support_ids.shape[1]
        if width != wanted:
            raise ValueError(f"sample {sample.sample_id}: support_ids has {width} columns, the stage's top-K support has {wanted}")


def _check_payload(samples: Sequence[TrainingSample]) -> None:
    payloads = {name for sample in samples for name in ("teacher_hidden", "teacher_full_logprobs") if getattr(sample, name) is not None}
    if len(payloads) > 1:
        raise ValueError(f"the samples of a micro-batch carry one payload of the whole teacher, got {sorted(payloads)}")


def _needed(term: LossTerm, loss: StageLoss) -> tuple[str, ...]:
    """Fields that a sample with this term must bring; a / means either."""
    needed = ("reference_logprobs",) if term.needs_reference else ()
    if not term.is_distilling:
        return needed
    if term.support == "sampled":
        return (*needed, "teacher_logprobs")
    if term.support == "top_k" and not loss.ranks_in_chunk:
        return (*needed, "teacher_logprobs", "support_ids", "teacher_support_logprobs")
    return (*needed, "teacher_logprobs", "teacher_hidden/teacher_full_logprobs")


def _has(sample: TrainingSample, name: str) -> bool:
    return any(getattr(sample, field) is not None for field in name.split("/"))


def _per_token(samples: Sequence[TrainingSample], field: str, name: str) -> np.ndarray:
    """float32 over all tokens of a per-term field; zeros where a sample does not have the term."""
    return np.concatenate(
        [
            np.asarray(getattr(sample, field)[name], dtype=np.float32)
            if name in getattr(sample, field)
            else np.zeros(len(sample.completion_token_ids), dtype=np.float32)
            for sample in samples
        ]
    )


def _term_rows(term: LossTerm, samples: Sequence[TrainingSample], weights: np.ndarray, selected: np.ndarray, device) -> TermRows:
    weights = weights[selected]
    indices = np.flatnonzero(weights)
    advantages = _per_token(samples, "term_advantages", term.name)[selected] if term.kind == "policy_gradient" else None
    if len(indices) < len(weights):
        weights, advantages = weights[indices], None if advantages is None else advantages[indices]
    else:
        indices = None
    return TermRows(
        weights=torch.from_numpy(weights).to(device),
        indices=indices,
        advantages=None if advantages is None else torch.from_numpy(advantages).to(device),
    )


def _taught(samples: Sequence[TrainingSample], selected: np.ndarray) -> np.ndarray | None:
    has = np.concatenate([np.full(len(sample.completion_token_ids), sample.teacher_logprobs is not None) for sample in samples])[selected]
    return None if has.all() else np.flatnonzero(has)


class _Take:
    """Per-token arrays of the samples, concatenated, at the selected rows, on the device."""

    def __init__(self, samples: Sequence[TrainingSample], selected: np.ndarray, device):
        self._samples, self._selected, self._device = samples, selected, device

    def floats(self, arrays: Sequence[np.ndarray], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)[self._selected]).to(device=self._device, dtype=dtype)

    def optional(self, field: str, dtype: torch.dtype = torch.float32, *, missing: float = 0.0) -> Tensor | None:
        """None where no sample has the field; ``missing`` for the samples that do not."""
        arrays = [getattr(sample, field) for sample in self._samples]
        given = next((array for array in arrays if array is not None), None)
        if given is None:
            return None
        lengths = [len(sample.completion_token_ids) for sample in self._samples]
        return self.floats(
            [
                np.full((length, *given.shape[1:]), missing, given.dtype) if array is None else array
                for array, length in zip(arrays, lengths, strict=True)
            ],
            dtype,
        )
