"""What a measurement of drift may be told. Invariant: values are checked when the options are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trainer.diagnostics.row_blocks import BLOCK_ENTRIES
from trainer.diagnostics.weight_files import DriftRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftOptions:
    """k is the smallest that holds ``energy`` of the squared spectrum of the matrix before, at most ``max_k``, or ``k`` itself."""

    energy: float = 0.9
    max_k: int = 128
    k: int | None = None
    """Fixed for every matrix; never more than a matrix has directions."""
    alpha: float = 0.3
    """Of entries in the principal and in the low mask; the share that chance would give."""
    tolerance: float = 1e-3
    """Of the relative rule for unchanged weights."""
    block_entries: int = BLOCK_ENTRIES
    """Of a matrix, converted at a time; changes memory, not results."""

    def __post_init__(self) -> None:
        checks = {
            "energy": (0.0 < self.energy <= 1.0, "above 0 and at most 1"),
            "max_k": (self.max_k >= 1, "at least 1"),
            "k": (self.k is None or self.k >= 1, "at least 1"),
            "alpha": (0.0 < self.alpha < 1.0, "between 0 and 1"),
            "tolerance": (self.tolerance >= 0.0, "not negative"),
            "block_entries": (self.block_entries >= 1, "at least 1"),
        }
        for name, (fits, allowed) in checks.items():
            if not fits:
                raise DriftRefused(name, f"{getattr(self, name)} is not {allowed}")

    def to_dict(self) -> dict[str, float | int | None]:
        return asdict(self)
