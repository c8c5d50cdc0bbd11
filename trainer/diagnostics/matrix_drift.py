"""The drift of one tensor: one row of the result.

Vectors (norm scales, biases) have the norms and the unchanged shares; matrices also the spectrum and the masks. A tensor of more
than two dimensions is measured as the stack of its last two, one row each.

Invariant: numerators and denominators are kept, and every ratio is formed from them; a ratio over nothing is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from torch import Tensor

from trainer.diagnostics.options import DriftOptions
from trainer.diagnostics.principal_masks import MaskCounts, bf16_changed, mask_counts, relatively_unchanged
from trainer.diagnostics.row_blocks import RowBlocks
from trainer.diagnostics.spectra_cache import Key, SpectraCache
from trainer.diagnostics.spectral_drift import SpectralDrift, spectral_drift
from trainer.diagnostics.weight_files import DriftRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryCounts:
    """Sums over all entries of one tensor."""

    entries: int
    squared_before: float
    squared_change: float
    bf16_unchanged: int
    """Entries with the same bf16 value."""
    relative_unchanged: int
    """Entries that moved by at most the tolerance, as stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixDrift:
    """``spectral`` and ``masks`` are None for vectors, and where a matrix is zero."""

    name: str
    kind: str
    shape: tuple[int, ...]
    counts: EntryCounts
    spectral: SpectralDrift | None
    masks: MaskCounts | None

    @property
    def max_angle_deg(self) -> float | None:
        return max(self.spectral.left_angle_deg, self.spectral.right_angle_deg) if self.spectral else None

    def ratios(self) -> dict[str, float | None]:
        """Every figure that is aggregated, by its name."""
        spectral = self.spectral
        found = {
            "nss": spectral.nss if spectral else None,
            "max_angle_deg": self.max_angle_deg,
            "subspace_similarity": spectral.subspace_similarity if spectral else None,
            "stable_rank": spectral.stable_rank if spectral else None,
        }
        sums = self.sums()
        for name, (numerator, denominator) in RATIOS.items():
            found[name] = ratio(sums.get(numerator), sums.get(denominator))
        found["relative_l2"] = found["relative_l2"] ** 0.5 if found["relative_l2"] is not None else None
        return found

    def sums(self) -> dict[str, float]:
        """Numerators and denominators; the update's size in the mask ratios is that of matrices alone."""
        found: dict[str, float] = asdict(self.counts)
        if self.masks is not None:
            found |= asdict(self.masks) | {
                "mask_entries": self.counts.entries,
                "updated": self.counts.entries - self.counts.bf16_unchanged,
            }
        return found

    def to_dict(self) -> dict[str, object]:
        spectral = asdict(self.spectral) if self.spectral else {}
        return {"name": self.name, "kind": self.kind, "shape": list(self.shape)} | spectral | self.sums() | self.ratios()


RATIOS = {
    "relative_l2": ("squared_change", "squared_before"),
    "bf16_unchanged_share": ("bf16_unchanged", "entries"),
    "relative_unchanged_share": ("relative_unchanged", "entries"),
    "principal_overlap": ("principal_both", "principal_before"),
    "principal_update_share": ("principal_updated", "principal_before"),
    "update_in_principal_share": ("principal_updated", "updated"),
    "principal_baseline": ("principal_before", "mask_entries"),
    "low_update_share": ("low_updated", "low"),
    "update_in_low_share": ("low_updated", "updated"),
    "low_baseline": ("low", "mask_entries"),
}
"""ratio: (numerator, denominator) among the sums; relative_l2 is the root of its own. The baselines are what chance would give."""


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


@dataclass(frozen=True, slots=True)
class CachedPair:
    """Where the spectra of one pair of tensors are kept between measurements."""

    cache: SpectraCache
    before: Key
    after: Key

    def part(self, suffix: str) -> CachedPair:
        """Of one matrix of a stack."""
        return CachedPair(self.cache, *((*key[:-1], key[-1] + suffix) for key in (self.before, self.after)))


def tensor_drift(
    name: str, kind: str, old: Tensor, new: Tensor, options: DriftOptions, cached: CachedPair | None = None
) -> Iterator[MatrixDrift]:
    """The rows of one tensor: one, or one for every matrix of a stack."""
    if old.ndim > 2:
        old, new = old.squeeze(), new.squeeze()  # the kernel of a depthwise convolution, [channels, 1, width], is one matrix
    if old.ndim > 2:
        pairs = zip(old.reshape(-1, *old.shape[-2:]), new.reshape(-1, *new.shape[-2:]), strict=True)
        for place, (old_matrix, new_matrix) in enumerate(pairs):
            suffix = f"[{place}]"
            yield _row(name + suffix, kind, old_matrix, new_matrix, options, cached and cached.part(suffix))
    else:
        yield _row(name, kind, old, new, options, cached)


def _row(name: str, kind: str, old: Tensor, new: Tensor, options: DriftOptions, cached: CachedPair | None) -> MatrixDrift:
    as_matrix = (old, new) if old.ndim == 2 else (old.reshape(-1, 1), new.reshape(-1, 1))
    before, after = (RowBlocks.of(value, options.block_entries) for value in as_matrix)
    counts = _entry_counts(name, before, after, options.tolerance)
    spectral = masks = None
    if old.ndim == 2 and counts.entries:
        change = counts.squared_change**0.5
        spectra = cached and (
            lambda method: cached.cache.spectrum(cached.before, before, method, options),
            lambda method: cached.cache.spectrum(cached.after, after, method, options),
        )
        transposed = old.shape[0] < old.shape[1]
        found = spectral_drift(before, after, change=change, transposed=transposed, options=options, spectra=spectra)
        if found is not None:
            spectral, *low_rank = found
            masks = mask_counts(before, after, tuple(low_rank), options.alpha)
    return MatrixDrift(name=name, kind=kind, shape=tuple(old.shape), counts=counts, spectral=spectral, masks=masks)


def _entry_counts(name: str, before: RowBlocks, after: RowBlocks, tolerance: float) -> EntryCounts:
    squared_before = squared_change = 0.0
    unchanged = relative = 0
    for old, new, old_wide, new_wide in zip(before.stored(), after.stored(), before, after, strict=True):
        wide = old_wide.reshape(-1)
        moved = new_wide.reshape(-1) - wide
        squared_before += float(wide.dot(wide))
        squared_change += float(moved.dot(moved))
        if not math.isfinite(squared_before + squared_change):
            raise DriftRefused(
                f"values of {name}", "a value is not finite (or its square is not), in one of the two sets of weights"
            )
        unchanged += old.numel() - int(bf16_changed(old, new).count_nonzero())
        relative += int(relatively_unchanged(old, new, tolerance).count_nonzero())
    return EntryCounts(
        entries=before.shape[0] * before.shape[1],
        squared_before=squared_before,
        squared_change=squared_change,
        bf16_unchanged=unchanged,
        relative_unchanged=relative,
    )
