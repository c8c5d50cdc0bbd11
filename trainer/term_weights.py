"""What one completion weighs in one term: its tokens' weights and its share of the term's denominator.

Masks multiply. The denominator counts the tokens that are left, except that a random mask with ``denominator: all`` leaves
its tokens counted: the signal then gets thinner instead of noisier. A completion of which no token is counted is no
sequence either. Legend: T completion tokens.

| normaliser | weight of a token | share of the denominator |
|---|---|---|
| token_mean | 1 | counted tokens |
| sequence_mean | 1 / counted tokens | 1 |
| sequence_sum | 1 | 1 |
| constant | 1 | normaliser_tokens, or the stage's max_tokens |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.masks import MASKS, CompletionView, MaskContext
from trainer.objectives import ADVANTAGE_KINDS

NORMALISERS: dict[str, Callable[[int, int], tuple[float, float]]] = {
    "token_mean": lambda counted, constant: (1.0, float(counted)),
    "sequence_mean": lambda counted, constant: (1.0 / counted, 1.0),
    "sequence_sum": lambda counted, constant: (1.0, 1.0),
    "constant": lambda counted, constant: (1.0, float(constant)),
}
"""(counted tokens, the constant) -> (weight of a token, share of the denominator)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermWeights:
    """One completion in one term."""

    share: float
    """Of the denominator; 0 where the term does not see the completion."""
    weights: np.ndarray | None
    """float32 [T]; None where nothing can be learned: another kind of completion, no target, no token left."""
    mask_kept: tuple[tuple[str, int], ...] = ()
    """(kind of mask, tokens that it alone kept), where the term sees the completion and it has what the term needs."""


NOT_SEEN = TermWeights(share=0.0, weights=None)


def weigh(term: Any, view: CompletionView, context: MaskContext, *, comparable: np.ndarray | None = None) -> TermWeights:
    """``comparable`` [T] is False where a teacher of another vocabulary means another text by the token."""
    if term.samples == "without_target":
        is_missing = view.has_target
    else:
        is_missing = not view.has_target and (term.samples == "with_target" or needs_target(term))
    if is_missing and not term.count_missing_targets:
        return NOT_SEEN
    kept = np.ones(len(view), dtype=bool)
    if comparable is not None and term.needs_teacher and view.has_target:
        kept = comparable.copy()
    counted = kept.copy()
    mask_kept = []
    for spec in term.masks:
        mask = MASKS[spec.kind](view, spec, context)
        kept &= mask
        if getattr(spec, "denominator", "kept") == "kept":
            counted &= mask
        mask_kept.append((spec.kind, int(mask.sum())))
    if not counted.any():
        return TermWeights(share=0.0, weights=None, mask_kept=() if is_missing else tuple(mask_kept))
    weight, share = NORMALISERS[term.normaliser](int(counted.sum()), term.normaliser_tokens or context.max_tokens)
    if is_missing:
        return TermWeights(share=share, weights=None)
    weights = np.where(kept, np.float32(weight), np.float32(0.0)) if kept.any() else None
    return TermWeights(share=share, weights=weights, mask_kept=tuple(mask_kept))


def needs_target(term: Any) -> bool:
    """Whether the term has nothing to say of a completion that the teacher did not score.

    A policy gradient with a share of the outcome has: there the teacher's part of its advantage is 0.
    """
    if term.objective.kind in ADVANTAGE_KINDS and term.objective.advantage.outcome_weight > 0.0:
        return False
    return term.needs_teacher
