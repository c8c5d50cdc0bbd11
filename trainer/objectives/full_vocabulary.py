"""Divergences over the full vocabulary, with the gradient in closed form: nothing of autograd, few passes over [C, V].

Legend: C rows of a chunk, V vocabulary, s_v the summand of entry v, slope_v = d s_v / d log p_v with p_v = exp(log p_v).
The gradient with respect to the logits is slope - p * sum(slope) (chain rule of log-softmax); adding a multiple of p to
the slopes changes nothing, so the reverse KL's slope is its own summand. The one invariant: values and gradients are those
of the functions of the same name in ``OBJECTIVES``, which autograd differentiates (a test holds them together).

The summands, with d = log p - log q held within the log-ratio clip, and their slopes:
  forward  -q d                                        -q [d not held]
  reverse   p d                                         p (d + [d not held])
  jensen    (1 - w) p a + w q (a - d), a = log p / m    (1 - w) p a, held or not
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.objectives.clips import has_clips

Scratch = Callable[[str], Tensor]
"""Name -> a buffer [C, V] whose content is free to use; the same name gives the same buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FullRows:
    """Both distributions of a chunk, and what the record needs of them anyway."""

    policy: Tensor
    """[C, V] log p"""
    probabilities: Tensor
    """[C, V] p"""
    teacher: Tensor
    """[C, V] log q; every other divergence reads it"""
    reverse_entries: Tensor
    """[C, V] p (log p - log q); a reverse KL without clips reads it"""
    reverse: Tensor
    """[C] their sums, KL(policy || teacher)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FullValues:
    """What a divergence makes of a chunk, before any weight of a row."""

    values: Tensor
    """[C]"""
    slopes: Tensor
    """[C, V], for reading only, and only until the scratch buffers are used again"""
    slope_sums: Tensor
    """[C]"""
    free: Tensor | None
    """bool [C]: rows that carry gradient; None where all do. The others are held by the token clip."""
    held: Tensor | None
    """bool [C]: rows in which some clip held something; None without clips"""


def full_divergence(rows: FullRows, spec: Any, scratch: Scratch) -> FullValues:
    """Any of the divergences, by the ``kind`` of its spec."""
    if has_clips(spec):
        return _clipped(rows, spec, scratch)
    if spec.kind == "reverse_kl":
        return FullValues(values=rows.reverse, slopes=rows.reverse_entries, slope_sums=rows.reverse, free=None, held=None)
    ratios = torch.sub(rows.policy, rows.teacher, out=scratch("ratios"))
    entries, slopes = ENTRIES[spec.kind](rows, ratios, None, spec, scratch)
    return FullValues(values=entries.sum(-1), slopes=slopes, slope_sums=slopes.sum(-1), free=None, held=None)


def _clipped(rows: FullRows, spec: Any, scratch: Scratch) -> FullValues:
    ratios = torch.sub(rows.policy, rows.teacher, out=scratch("ratios"))
    inside, held = None, torch.zeros(ratios.shape[0], dtype=torch.bool, device=ratios.device)
    if spec.log_ratio_clip is not None:
        ratios.clamp_(-spec.log_ratio_clip, spec.log_ratio_clip)
        inside = ratios.abs() < spec.log_ratio_clip
        held = ~inside.all(-1)
    entries, slopes = ENTRIES[spec.kind](rows, ratios, inside, spec, scratch)
    if spec.entry_clip is not None:
        over = entries > spec.entry_clip
        slopes.masked_fill_(over, 0.0)
        entries.clamp_(max=spec.entry_clip)
        held = held | over.any(-1)
    values, free = entries.sum(-1), None
    if spec.token_clip is not None:
        free = values <= spec.token_clip
        values, held = values.clamp(max=spec.token_clip), held | ~free
    return FullValues(values=values, slopes=slopes, slope_sums=slopes.sum(-1), free=free, held=held)


# -- (summands, slopes), in different buffers; ``ratios`` may be used up -------------------------------------------------


def _forward(rows: FullRows, ratios: Tensor, inside: Tensor | None, spec: Any, scratch: Scratch) -> tuple[Tensor, Tensor]:
    slopes = torch.exp(rows.teacher, out=scratch("slopes")).neg_()
    entries = ratios.mul_(slopes)
    return entries, slopes if inside is None else slopes.mul_(inside)


def _reverse(rows: FullRows, ratios: Tensor, inside: Tensor | None, spec: Any, scratch: Scratch) -> tuple[Tensor, Tensor]:
    weights = rows.probabilities if inside is None else torch.mul(rows.probabilities, inside, out=scratch("slopes"))
    entries = ratios.mul_(rows.probabilities)
    return entries, torch.add(entries, weights, out=scratch("slopes"))


def _jensen(rows: FullRows, ratios: Tensor, inside: Tensor | None, spec: Any, scratch: Scratch) -> tuple[Tensor, Tensor]:
    weight = spec.weight
    over_mixture = torch.neg(ratios, out=scratch("slopes")).add_(math.log(weight))
    constant = torch.full((), math.log1p(-weight), dtype=ratios.dtype, device=ratios.device)
    torch.logaddexp(over_mixture, constant, out=over_mixture).neg_()
    entries = torch.sub(over_mixture, ratios, out=ratios)
    entries.mul_(torch.exp(rows.teacher, out=scratch("teacher_probabilities"))).mul_(weight)
    slopes = over_mixture.mul_(rows.probabilities).mul_(1.0 - weight)
    return entries.add_(slopes), slopes


ENTRIES = {"forward_kl": _forward, "reverse_kl": _reverse, "jensen_shannon": _jensen}
