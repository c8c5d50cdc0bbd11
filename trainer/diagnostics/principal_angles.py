"""The largest angle between two subspaces, exact for small angles too.

cos of the largest angle is the least singular value of A^T B, for orthonormal A and B; below 1e-8 radians a cosine in float64
is 1. So the sine is taken as well, from what of B lies outside the span of A, and the angle from both.

Legend: n dimension, k columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def largest_angle(basis: Tensor, other: Tensor) -> float:
    """Radians between the spans of two orthonormal bases [n, k]."""
    overlap = basis.T @ other
    outside = other - basis @ overlap
    outside -= basis @ (basis.T @ outside)
    cosine = float(torch.linalg.svdvals(overlap)[-1])
    sine = float(torch.linalg.eigvalsh(outside.T @ outside)[-1].clamp(min=0.0)) ** 0.5
    return math.atan2(sine, cosine)


def subspace_similarity(basis: Tensor, other: Tensor) -> float:
    """The mean squared cosine, ||A^T B||_F^2 / k: 1 for one span, k/n in expectation for random ones."""
    return float((basis.T @ other).square().sum()) / basis.shape[1]


def left_basis(scaled: Tensor) -> Tensor:
    """Orthonormal columns that span those of W V [n, k], which are the left singular vectors times their values."""
    return torch.linalg.qr(scaled / torch.linalg.vector_norm(scaled, dim=0)).Q
