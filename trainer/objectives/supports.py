"""Supports: the columns on which policy and teacher are compared.

A top-K support keeps its log-probabilities normalised over the full vocabulary and gets one more column, the tail
bucket log(1 - sum of the K probabilities), so that every row is a distribution over K + 1 events (SDPO, 2601.20802,
eq. 11). Coarse-graining can only lower a divergence, so top-K with tail <= full vocabulary (test property T7).
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_MASS = -1e-7
"""The log mass of a support is clamped to this: the tail keeps at least 1e-7, so its logarithm is finite."""


def with_tail_bucket(support_logprobs: Tensor) -> Tensor:
    """[R, K] log-probabilities -> [R, K + 1] with log(1 - sum p) appended.

    Where the clamp binds (the tail holds less than 1e-7) the tail column carries no gradient.
    """
    log_mass = torch.logsumexp(support_logprobs, dim=-1, keepdim=True).clamp(max=MAX_LOG_MASS)
    return torch.cat((support_logprobs, torch.log(-torch.expm1(log_mass))), dim=-1)
