"""Training samples of one micro-batch as tensors: the pack the model reads, and the rows the loss head reads.

Only rows with a weight in some term are selected; the rest of a completion is context. Legend: R selected rows, K support
size, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cluster.messages import TrainingSample
from trainer.modeling.packed import PackedSequences, pack_sequences
from trainer.terms import StageLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class TermRows:
    """The rows that carry a term."""

    weights: Tensor
    """float32 [Rt], all non-zero"""
    indices: np.ndarray | None
    """int64 [Rt], rising row numbers on the host; None where every row carries the term."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossRows:
    """What the loss head reads besides hidden states. Rows of samples without teacher hold zeros and no teacher term."""

    token_ids: Tensor
    """int64 [R]"""
    rollout_logprobs: Tensor
    """float32 [R]"""
    advantages: Tensor
    """float32 [R]"""
    terms: dict[str, TermRows]
    taught: np.ndarray | None
    """int64 rows of samples with a teacher's scores; None where all rows are."""
    support_ids: Tensor | None
    """int64 [R, K]"""
    teacher_logprobs: Tensor | None
    """float32 [R]"""
    teacher_support_logprobs: Tensor | None
    """float32 [R, K]"""
    teacher_hidden: Tensor | None
    """float32 [R, H]"""

    @property
    def count(self) -> int:
        return self.token_ids.shape[0]


def collate(
    samples: Sequence[TrainingSample], loss: StageLoss, *, device: str | torch.device = "cpu"
) -> tuple[PackedSequences, LossRows]:
    """Pack the samples of a micro-batch. Raises ValueError where a term's inputs are missing on a sample that carries it."""
    for sample in samples:
        _check(sample, loss)
    pairs = [(sample.prompt_token_ids, sample.completion_token_ids) for sample in samples]
    weights = {term.name: _concatenate_weights(samples, term.name) for term in loss.terms}
    selected = np.flatnonzero(np.any([values != 0 for values in weights.values()], axis=0))
    packed = pack_sequences(pairs, device=device)
    rows = torch.from_numpy(selected).to(device)
    packed = replace(packed, row_indices=packed.row_indices[rows], target_ids=packed.target_ids[rows])
    take = _Take(samples, selected, device)
    needs = {term.support for term in loss.terms if term.needs_teacher}
    return packed, LossRows(
        token_ids=packed.target_ids,
        rollout_logprobs=take.floats([sample.rollout_logprobs for sample in samples]),
        advantages=take.floats([np.full(len(sample.completion_token_ids), sample.advantage) for sample in samples]),
        terms={name: _term_rows(values[selected], device) for name, values in weights.items()},
        taught=_taught(samples, selected) if needs else None,
        support_ids=take.optional("support_ids", torch.int64) if "top_k" in needs else None,
        teacher_logprobs=take.optional("teacher_logprobs") if needs else None,
        teacher_support_logprobs=take.optional("teacher_support_logprobs") if "top_k" in needs else None,
        teacher_hidden=take.optional("teacher_hidden") if "full" in needs else None,
    )


NEEDED_FIELDS = {
    "sampled": ("teacher_logprobs",),
    "top_k": ("teacher_logprobs", "support_ids", "teacher_support_logprobs"),
    "full": ("teacher_logprobs", "teacher_hidden"),
}
"""By support, what a sample that carries a teacher term must bring."""


def _check(sample: TrainingSample, loss: StageLoss) -> None:
    for term in loss.terms:
        if term.name in sample.term_weights and term.needs_teacher:
            missing = [field for field in NEEDED_FIELDS[term.support] if getattr(sample, field) is None]
            if missing:
                raise ValueError(f"sample {sample.sample_id} carries term {term.name} ({term.support}) without {missing}")


def _concatenate_weights(samples: Sequence[TrainingSample], name: str) -> np.ndarray:
    return np.concatenate(
        [
            np.asarray(sample.term_weights[name], dtype=np.float32)
            if name in sample.term_weights
            else np.zeros(len(sample.completion_token_ids), dtype=np.float32)
            for sample in samples
        ]
    )


def _term_rows(weights: np.ndarray, device) -> TermRows:
    indices = np.flatnonzero(weights)
    everywhere = len(indices) == len(weights)
    return TermRows(
        weights=torch.from_numpy(weights if everywhere else weights[indices]).to(device), indices=None if everywhere else indices
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

    def optional(self, field: str, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """None where no sample has the field; zeros for the samples that do not."""
        arrays = [getattr(sample, field) for sample in self._samples]
        given = next((array for array in arrays if array is not None), None)
        if given is None:
            return None
        lengths = [len(sample.completion_token_ids) for sample in self._samples]
        return self.floats(
            [np.zeros((length, *given.shape[1:]), given.dtype) if array is None else array for array, length in zip(arrays, lengths, strict=True)],
            dtype,
        )
