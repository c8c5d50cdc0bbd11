"""The three clips of a divergence, from the inside out: the log-ratio, each entry's summand, the token's value.

Legend: R rows, K columns of the support. Where a clip holds a number, that number is a constant: no gradient passes it.
The invariant: with no clip set nothing here changes a value or a gradient, and no metric is returned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.objectives.base import RowValues

CLIPS = ("entry_clip", "token_clip", "log_ratio_clip")


def has_clips(spec: Any) -> bool:
    return any(getattr(spec, clip, None) is not None for clip in CLIPS)


def log_ratio(policy: Tensor, teacher: Tensor, spec: Any) -> Tensor:
    """log p - log q, held within +- ``log_ratio_clip`` (2603.25562); same shape as both."""
    difference = policy - teacher.detach()
    return difference if spec.log_ratio_clip is None else difference.clamp(-spec.log_ratio_clip, spec.log_ratio_clip)


def clipped_sum(entries: Tensor, ratios: Tensor, spec: Any, extra: Tensor | None = None) -> RowValues:
    """[R, K] summands -> [R] values: entries at most ``entry_clip`` (OPSD, 2601.18734), values at most ``token_clip``.

    ``ratios`` are the log-ratios as ``log_ratio`` gave them, ``extra`` [R] a part of the value that is no entry. Metric
    ``clipped_share``: rows in which some clip held something.
    """
    held = torch.zeros(entries.shape[0], dtype=torch.bool, device=entries.device)
    if spec.log_ratio_clip is not None:
        held = held | (ratios.detach().abs() >= spec.log_ratio_clip).any(-1)
    if spec.entry_clip is not None:
        held = held | (entries.detach() > spec.entry_clip).any(-1)
        entries = entries.clamp(max=spec.entry_clip)
    values = entries.sum(-1) if extra is None else entries.sum(-1) + extra
    if spec.token_clip is not None:
        held = held | (values.detach() > spec.token_clip)
        values = values.clamp(max=spec.token_clip)
    return RowValues(values=values, metrics={"clipped_share": held} if has_clips(spec) else {})
