"""How one matrix's spectrum and leading subspaces moved: NSS, principal angles, similarity, stable rank of the update.

Gram matrices first; both spectra anew by QR where the bounds of ``spectra.py`` are not small against what was measured and QR's
are better. Invariant: ``nss_error`` and ``angle_error_deg`` bound the rounding in ``nss`` and the angles.

Legend: L long side, S short side, k columns of a basis; "left" and "right" are those of the matrix as it is stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.diagnostics.options import DriftOptions
from trainer.diagnostics.principal_angles import largest_angle, left_basis, subspace_similarity
from trainer.diagnostics.row_blocks import RowBlocks, differences
from trainer.diagnostics.spectra import Spectrum, by_gram, by_qr, spectral_norm

ACCURATE_SHARE = 1e-2
"""Of what was measured: a bound below it is small."""
NSS_FLOOR = 1e-12
ANGLE_FLOOR = 1e-9
"""Radians; bounds below a floor are small whatever was measured."""
WORTH = 0.5
"""QR is tried where it at least halves a bound."""


Method = Callable[[RowBlocks], Spectrum]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectralDrift:
    """Of one matrix; degrees where a name says so."""

    k: int
    gap: float
    """(s_k - s_{k+1}) / s_1 of the matrix before: where it is nothing, the angles mean nothing."""
    nss: float
    nss_error: float
    left_angle_deg: float
    right_angle_deg: float
    angle_error_deg: float
    subspace_similarity: float
    """Of the right subspaces."""
    stable_rank: float | None
    """Of the update; None where there is none."""
    method: str


@dataclass(frozen=True, slots=True)
class LowRank:
    """A matrix's rank-k reconstruction W V V^T in its factors, for the principal masks."""

    scaled: Tensor
    """W V, [L, k]"""
    basis: Tensor
    """V, [S, k]"""


Spectra = tuple[Callable[[Method], Spectrum], Callable[[Method], Spectrum]]
"""The spectrum of the matrix before and of that after, by a method."""


def spectral_drift(
    before: RowBlocks, after: RowBlocks, *, change: float, transposed: bool, options: DriftOptions, spectra: Spectra | None = None
) -> tuple[SpectralDrift, LowRank, LowRank] | None:
    """Measure one pair, ``change`` being ||after - before||_F; None where a matrix is zero and has no directions.

    ``spectra`` may know them already (``spectra_cache.py``); otherwise they are computed here.
    """
    spectra = spectra or (lambda method: method(before), lambda method: method(after))
    found = _measure(before, after, by_gram, spectra, change=change, options=options)
    if found is None or _needs_qr(found, change):
        found = _measure(before, after, by_qr, spectra, change=change, options=options)
    if found is None:
        return None
    long_side, short_side = ("right", "left") if transposed else ("left", "right")
    right_bases = found.long_bases if transposed else (found.before.basis, found.after.basis)
    drift = SpectralDrift(
        k=found.k,
        gap=found.gap,
        nss=found.nss,
        nss_error=found.nss_error,
        angle_error_deg=math.degrees(found.angle_error),
        subspace_similarity=subspace_similarity(*right_bases) if change else 1.0,
        stable_rank=(change / spectral_norm(differences(before, after), before.shape[1])) ** 2 if change else None,
        method=found.old.method,
        **{f"{long_side}_angle_deg": math.degrees(found.long_angle), f"{short_side}_angle_deg": math.degrees(found.short_angle)},
    )
    return drift, found.before, found.after


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """One measurement, by one method."""

    old: Spectrum
    wanted: int
    k: int
    gap: float
    nss: float
    nss_error: float
    long_angle: float
    short_angle: float
    angle_error: float
    before: LowRank
    after: LowRank
    long_bases: tuple[Tensor, Tensor]


def _measure(
    before: RowBlocks, after: RowBlocks, method: Method, spectra: Spectra, *, change: float, options: DriftOptions
) -> _Found | None:
    old = spectra[0](method)
    new = spectra[1](method) if change else old
    wanted = leading(old.values, options)
    k = min(wanted, old.rank(), new.rank())
    if k == 0:
        return None
    norm = float(torch.linalg.vector_norm(old.values))
    old_low = _low_rank(before, old, k)
    new_low = _low_rank(after, new, k) if change else old_low
    old_long = left_basis(old_low.scaled)
    new_long = left_basis(new_low.scaled) if change else old_long
    following = float(old.values[k]) if k < len(old.values) else 0.0
    return _Found(
        old=old,
        wanted=wanted,
        k=k,
        gap=(float(old.values[k - 1]) - following) / float(old.values[0]),
        nss=float(torch.linalg.vector_norm(new.values - old.values)) / norm,
        nss_error=float(torch.linalg.vector_norm(new.value_errors() + old.value_errors())) / norm if change else 0.0,
        long_angle=largest_angle(old_long, new_long) if change else 0.0,
        short_angle=largest_angle(old_low.basis, new_low.basis) if change else 0.0,
        angle_error=min(old.subspace_error(k) + new.subspace_error(k), math.pi / 2) if change else 0.0,
        before=old_low,
        after=new_low,
        long_bases=(old_long, new_long),
    )


def _low_rank(blocks: RowBlocks, spectrum: Spectrum, k: int) -> LowRank:
    basis = spectrum.vectors[:, :k].contiguous()
    return LowRank(blocks.times(basis), basis)


def leading(values: Tensor, options: DriftOptions) -> int:
    """k by the options, before ranks are known."""
    if options.k is not None:
        return min(options.k, len(values))
    held = values.square().cumsum(0)
    return min(int(torch.searchsorted(held, options.energy * held[-1])) + 1, options.max_k, len(values))


def _needs_qr(found: _Found, change: float) -> bool:
    """Whether a bound is not small, and that of QR would be."""
    values = found.old.values
    if found.k < found.wanted:
        return True  # values that a Gram matrix cannot tell from nothing
    if not change:
        return False
    qr_nss_error = 2.0 * found.old.noise / float(values[0]) * len(values) ** 0.5 / float(torch.linalg.vector_norm(values))
    if found.nss_error > max(ACCURATE_SHARE * found.nss, NSS_FLOOR) and qr_nss_error < WORTH * found.nss_error:
        return True
    following = float(values[found.k]) if found.k < len(values) else 0.0
    smaller = (float(values[found.k - 1]) + following) / float(values[0])
    least = min(found.long_angle, found.short_angle)
    return found.angle_error > max(ACCURATE_SHARE * least, ANGLE_FLOOR) and smaller < WORTH
