"""One teacher as it scores: weight sets with exponents, as one hidden state and one output matrix.

Legend: R rows, V the policy's vocabulary, H' the sum of the parts' hidden sizes, e_i the exponents.
q ~ product of q_i ^ e_i has the logits sum of e_i h_i W_i' = [h_1 | h_2] [e_1 W_1 | e_2 W_2]', so a mixed teacher is exact and
normalised over the whole vocabulary wherever a plain one is: only the rows are wider. The matrix carries the exponents.
Invariant: ``head`` has exactly V rows, whatever an external model was padded to. Ids that a part has no row for get
probability 0 by one more column: 1 in every hidden state, ABSENT_LOGIT in their rows of the matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from services.teacher.weights import WeightSet
from trainer.modeling.packed import PackedSequences

ABSENT_LOGIT = -1e30
"""Finite also when divided by a small temperature, and far enough below any logit that its probability is exactly 0."""


class Mixture:
    """``masked`` are the ids on which a part has another vocabulary than the policy."""

    def __init__(self, parts: Sequence[tuple[WeightSet, float]], *, vocabulary: int, masked: frozenset[int] = frozenset()):
        self._parts = tuple(parts)
        self._vocabulary = vocabulary
        self._head: Tensor | None = None
        absent = torch.zeros(vocabulary, dtype=torch.bool)
        for part, _ in self._parts:
            absent[part.model.head_weight.shape[0] :] = True
        known = [token for token in masked if token < vocabulary]
        self.masked_token_ids = frozenset(known) | frozenset(absent.nonzero()[:, 0].tolist())
        self.masked, self.absent = self._mask(sorted(self.masked_token_ids)), self._mask(absent.nonzero()[:, 0].tolist())

    def _mask(self, ids: list[int]) -> Tensor | None:
        if not ids:
            return None
        mask = torch.zeros(self._vocabulary, dtype=torch.bool)
        mask[ids] = True
        return mask.to(self._parts[0][0].model.head_weight.device)

    @property
    def width(self) -> int:
        """H'"""
        return sum(part.model.head_weight.shape[1] for part, _ in self._parts)

    def moved(self) -> None:
        """Forget the output matrix: a part's weights have changed."""
        self._head = None

    def head(self) -> Tensor:
        """[V, H']; a plain teacher's own matrix, uncopied, where it has the policy's rows."""
        if self._head is None:
            matrices = [self._matrix(part, exponent) for part, exponent in self._parts]
            if self.absent is not None:
                matrices.append((self.absent.to(matrices[0].dtype) * ABSENT_LOGIT)[:, None])
            self._head = matrices[0] if len(matrices) == 1 else torch.cat(matrices, dim=1)
        return self._head

    def _matrix(self, part: WeightSet, exponent: float) -> Tensor:
        weight = part.model.head_weight[: self._vocabulary]
        if exponent != 1.0:
            weight = (exponent * weight.float()).to(weight.dtype)
        missing = self._vocabulary - weight.shape[0]
        return weight if missing == 0 else torch.cat([weight, weight.new_zeros(missing, weight.shape[1])])

    def hidden_states(self, packed: PackedSequences) -> Tensor:
        """[R, H']: the parts' final hidden states side by side."""
        states = [part.model.hidden_states(_readable(packed, part)) for part, _ in self._parts]
        if self.absent is not None:
            states.append(states[0].new_ones(len(states[0]), 1))
        return states[0] if len(states) == 1 else torch.cat(states, dim=1)


def _readable(packed: PackedSequences, part: WeightSet) -> PackedSequences:
    """A model reads ids beyond its embedding as its last one; such ids are masked, they only stand in others' prefix."""
    last = part.model.model.get_input_embeddings().weight.shape[0] - 1
    if int(packed.token_ids.max()) <= last:
        return packed
    return replace(packed, token_ids=packed.token_ids.clamp(max=last))
