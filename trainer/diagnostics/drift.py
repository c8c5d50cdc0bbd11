"""Parameter drift between two sets of weights, by methods of arXiv 2606.07082 section 3.1.

    drift = measure_drift(Path("base"), Path("snapshot-0000000060.safetensors"))
    drift.metrics("drift/base")["drift/base/nss_median"]

Invariant: a few tensor pairs are in memory at a time, never a model; the same files and options give the same result.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.diagnostics.aggregates import Aggregate, aggregates, as_dicts
from trainer.diagnostics.matrix_drift import CachedPair, MatrixDrift, tensor_drift
from trainer.diagnostics.options import DriftOptions
from trainer.diagnostics.pairing import kind_of, paired_names
from trainer.diagnostics.spectra_cache import SpectraCache, file_key
from trainer.diagnostics.weight_files import WeightFiles, open_weights

DEFAULT_OPTIONS = DriftOptions()
SMALL_ENTRIES = 1 << 18
"""Of the largest tensor: below it one thread is as fast as several."""
MAX_AT_ONCE = 4
"""Matrix pairs in memory; the bound on memory whatever the number of threads."""

METRICS = {
    "relative_l2": ("relative_l2", "pooled"),
    "relative_l2_median": ("relative_l2", "median"),
    "nss_median": ("nss", "median"),
    "nss_mean": ("nss", "mean"),
    "nss_weighted": ("nss", "weighted"),
    "nss_max": ("nss", "max"),
    "max_angle_deg_median": ("max_angle_deg", "median"),
    "max_angle_deg_mean": ("max_angle_deg", "mean"),
    "max_angle_deg_weighted": ("max_angle_deg", "weighted"),
    "max_angle_deg_max": ("max_angle_deg", "max"),
    "subspace_similarity_median": ("subspace_similarity", "median"),
    "stable_rank_median": ("stable_rank", "median"),
    "bf16_unchanged_share": ("bf16_unchanged_share", "pooled"),
    "relative_unchanged_share": ("relative_unchanged_share", "pooled"),
    "principal_overlap": ("principal_overlap", "pooled"),
    "principal_overlap_median": ("principal_overlap", "median"),
    "principal_update_share": ("principal_update_share", "pooled"),
    "principal_update_share_median": ("principal_update_share", "median"),
    "update_in_principal_share": ("update_in_principal_share", "pooled"),
    "principal_baseline": ("principal_baseline", "pooled"),
    "low_update_share": ("low_update_share", "pooled"),
    "update_in_low_share": ("update_in_low_share", "pooled"),
    "low_baseline": ("low_baseline", "pooled"),
}
"""metric: (figure, statistic) over all tensors."""

KIND_METRICS = (
    "relative_l2",
    "nss_median",
    "max_angle_deg_median",
    "bf16_unchanged_share",
    "principal_overlap",
    "principal_update_share",
)
"""Those that are also given for each kind of matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterDrift:
    """Rows by checkpoint name, and aggregates by group (``all`` and each kind) and figure."""

    before: Path
    after: Path
    options: DriftOptions
    rows: tuple[MatrixDrift, ...]
    aggregates: dict[str, dict[str, Aggregate]]

    def metrics(self, prefix: str = "drift/base") -> dict[str, float]:
        """Flat figures for a run's log; one that nothing defines (no update fell anywhere) is left out."""
        found = _figures(self.aggregates.get("all", {}), METRICS, prefix)
        for kind, figures in self.aggregates.items():
            if kind != "all":
                found |= _figures(figures, {name: METRICS[name] for name in KIND_METRICS}, f"{prefix}/{kind}")
        return found

    def most_moved(self, count: int) -> list[MatrixDrift]:
        """The tensors with the largest relative L2 first."""
        return sorted(self.rows, key=lambda row: (-(row.ratios()["relative_l2"] or 0.0), row.name))[:count]

    def to_dict(self) -> dict[str, object]:
        """Everything, as JSON values."""
        return {
            "object": "parameter_drift",
            "before": str(self.before),
            "after": str(self.after),
            "options": self.options.to_dict(),
            "aggregates": as_dicts(self.aggregates),
            "matrices": [row.to_dict() for row in self.rows],
        }


def measure_drift(
    before: Path, after: Path, *, options: DriftOptions = DEFAULT_OPTIONS, cache: SpectraCache | None = None
) -> ParameterDrift:
    """Compare two Hugging Face folders, checkpoints of jobs or snapshot files. Raises DriftRefused, with field and reason, where they do not compare.

    ``cache`` keeps spectra from one measurement to the next; the figures are the same without it.
    """
    old, new = open_weights(before), open_weights(after)
    names = paired_names(old, new)
    sizes = {name: math.prod(old.shapes[name]) for name in names}
    with _matrix_threads(max(sizes.values(), default=0)) as pool:
        largest_first = sorted(names, key=lambda name: -sizes[name])
        found = dict(zip(largest_first, pool.map(lambda name: _rows(old, new, name, options, cache), largest_first), strict=True))
    rows = [row for name in names for row in found[name]]
    return ParameterDrift(before=Path(before), after=Path(after), options=options, rows=tuple(rows), aggregates=aggregates(rows))


def _rows(old: WeightFiles, new: WeightFiles, name: str, options: DriftOptions, cache: SpectraCache | None) -> list[MatrixDrift]:
    torch.set_num_threads(1)
    cached = cache and CachedPair(cache, *(file_key(side.files[name], name) for side in (old, new)))
    with torch.no_grad():
        return list(tensor_drift(name, kind_of(name), old.read(name), new.read(name), options, cached))


@contextlib.contextmanager
def _matrix_threads(largest_entries: int) -> Iterator[ThreadPoolExecutor]:
    """As many matrices at a time as torch has threads, one thread each (small ones one after the other); put back afterwards.

    Threads that share one matrix wait for each other at every step, which on a busy CPU costs more than it gives.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(max_workers=1 if largest_entries < SMALL_ENTRIES else min(threads, MAX_AT_ONCE)) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(cancel_futures=True)  # a refusal does not wait for the other matrices
                raise
    finally:
        torch.set_num_threads(threads)


def _figures(group: dict[str, Aggregate], wanted: dict[str, tuple[str, str]], prefix: str) -> dict[str, float]:
    found = {}
    for metric, (figure, statistic) in wanted.items():
        value = getattr(group[figure], statistic) if figure in group else None
        if value is not None:
            found[f"{prefix}/{metric}"] = float(value)
    return found
