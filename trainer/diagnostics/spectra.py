"""Singular values and right singular vectors of a tall matrix: from its float64 Gram matrix, or from a QR in row blocks.

A Gram matrix squares the singular values: one of size s carries an error of about u / s, where u = ``noise`` (below) bounds the
error of the squares, so that everything under sqrt(u), 1e-7 of the largest, is lost. Its eigenvectors split a subspace whose
squares lie ``gap`` apart with an error of u / gap. Both bounds are computed for every matrix (``value_errors``,
``subspace_error``), and the caller asks for ``by_qr`` where they are not small against what it measures: R of the QR has the
singular values of the matrix itself and an error of machine precision times the largest.

Invariant: values are sorted from the largest to the smallest, [S]; columns of ``vectors`` [S, S] belong to them.
Legend: L long side, S short side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.diagnostics.row_blocks import RowBlocks, gram

EPSILON = torch.finfo(torch.float64).eps


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Of one matrix."""

    values: Tensor
    vectors: Tensor
    method: str
    """``gram`` or ``qr``"""
    noise: float
    """What rounding may have done: to the squares of the values where the method is gram, to the values where it is qr."""

    def value_errors(self) -> Tensor:
        """[S] a bound for the error of each singular value."""
        if self.method == "qr":
            return torch.full_like(self.values, self.noise)
        squares = self.values.square()
        return (squares + self.noise).sqrt() - (squares - self.noise).clamp(min=0.0).sqrt()

    def subspace_error(self, k: int) -> float:
        """A bound in radians for the tilt of the span of the first k vectors; a right angle where nothing separates it."""
        if k >= len(self.values):
            return 0.0
        inside, outside = float(self.values[k - 1]), float(self.values[k])
        gap = inside - outside if self.method == "qr" else inside**2 - outside**2
        return min(self.noise / gap, torch.pi / 2) if gap > 0.0 else torch.pi / 2

    def rank(self) -> int:
        """How many values are above the noise."""
        floor = self.noise if self.method == "qr" else self.noise**0.5
        return int((self.values > floor).sum())


def by_gram(blocks: RowBlocks) -> Spectrum:
    """From the eigenvalues of W^T W, [S, S]: one pass over the matrix, 4 S^3 or so besides."""
    squares, vectors = torch.linalg.eigh(gram(blocks, blocks.shape[1]))
    squares = squares.flip(0).clamp(min=0.0)
    noise = EPSILON * sum(blocks.shape) ** 0.5 * float(squares[0])
    return Spectrum(squares.sqrt(), vectors.flip(1), "gram", noise)


def by_qr(blocks: RowBlocks) -> Spectrum:
    """From the singular values of R, where W = QR is formed block by block and Q is never kept."""
    triangle = torch.zeros(0, blocks.shape[1], dtype=torch.float64)
    for block in blocks:
        triangle = torch.linalg.qr(torch.cat([triangle, block]), mode="r").R
    _, values, vectors_t = torch.linalg.svd(triangle, full_matrices=False)
    noise = EPSILON * sum(blocks.shape) ** 0.5 * float(values[0])
    return Spectrum(values, vectors_t.T, "qr", noise)


def spectral_norm(blocks_of_difference, short_side: int) -> float:
    """The largest singular value, from the Gram matrix: there its relative error is machine precision."""
    return float(torch.linalg.eigvalsh(gram(blocks_of_difference, short_side))[-1].clamp(min=0.0)) ** 0.5
