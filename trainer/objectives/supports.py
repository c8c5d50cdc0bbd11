"""Supports: the columns on which policy and teacher are compared, and what becomes of all the others.

Legend: R rows, K columns. Log-probabilities are normalised over the full vocabulary when they come in. The tail:
``bucket`` adds one column log(1 - sum of the probabilities), so that every row is a distribution over K + 1 events (SDPO,
2601.20802, eq. 11; coarse-graining can only lower a divergence, property T7). ``renormalise`` makes a distribution of the
K columns (2603.25562, eq. 6). ``drop`` and ``sampled_correction`` leave the columns as they are.

The invariant: a column that is absent (the joined sampled token where it is among the K already) counts nowhere: it has
no share in a sum, in the tail or in the normaliser, and no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_MASS = -1e-7
"""The log mass of a support is clamped to this: the tail keeps at least 1e-7, so its logarithm is finite."""
ABSENT = -200.0
"""Log-probability of an absent column on both sides: exp(-200) = 1e-87 is nothing even in float64, and log-ratios stay 0."""


def present_columns(support_ids: Tensor, *, join_sampled: bool) -> Tensor | None:
    """ids [R, K] -> bool [R, K]; None where all are. With ``join_sampled`` the last column repeats where it is among the others."""
    if not join_sampled:
        return None
    present = torch.ones_like(support_ids, dtype=torch.bool)
    present[:, -1] = (support_ids[:, :-1] != support_ids[:, -1:]).all(-1)
    return present


def complete_support(logprobs: Tensor, tail: str, present: Tensor | None = None) -> Tensor:
    """[R, K] -> [R, K + 1] with ``bucket``, else [R, K]; absent columns hold ``ABSENT``."""
    if tail == "bucket":
        completed = with_tail_bucket(logprobs, present)
    else:
        completed = logprobs - log_mass(logprobs, present) if tail == "renormalise" else logprobs
    if present is None:
        return completed
    kept = present if completed.shape == present.shape else torch.cat((present, torch.ones_like(present[:, :1])), dim=-1)
    return torch.where(kept, completed, ABSENT)


def log_mass(logprobs: Tensor, present: Tensor | None = None) -> Tensor:
    """[R, 1]: logarithm of the sum of the probabilities."""
    counted = logprobs if present is None else torch.where(present, logprobs, -torch.inf)
    return torch.logsumexp(counted, dim=-1, keepdim=True)


def with_tail_bucket(logprobs: Tensor, present: Tensor | None = None) -> Tensor:
    """[R, K] log-probabilities -> [R, K + 1] with log(1 - sum p) appended.

    Where the clamp binds (the tail holds less than 1e-7) the tail column carries no gradient.
    """
    mass = log_mass(logprobs, present).clamp(max=MAX_LOG_MASS)
    return torch.cat((logprobs, torch.log(-torch.expm1(mass))), dim=-1)
