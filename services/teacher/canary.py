"""Proof at run time that the teacher's weights are what its strategy gives.

The lead keeps a few hundred entries of the teacher in float64, applies the strategy's closed form to them from the
published snapshots, and compares with what the teacher reports after every follow. It shares no arithmetic with
``strategies.py``. Invariant: every publication is applied to the expectation exactly once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.errors import TeacherError
from cluster.transfer.snapshot import read_snapshot

NUM_TENSORS = 4
NUM_ENTRIES = 64
FLOAT32_ROUNDING = 2.0**-24
"""Relative error of one float32 operation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """What the teacher reports after it has followed a publication, or after it was anchored."""

    teacher_version: int
    """Number of the last update that was followed."""
    canary: dict[str, np.ndarray]
    """float32 entries of a few tensors, by name; see ``canary_entries``."""


def canary_names(names: list[str]) -> list[str]:
    """Up to ``NUM_TENSORS`` names, spread evenly over the names in order."""
    ordered = sorted(names)
    picked = np.linspace(0, len(ordered) - 1, min(NUM_TENSORS, len(ordered))).round().astype(int)
    return [ordered[index] for index in picked]


def canary_entries(tensor: Tensor) -> np.ndarray:
    """Up to ``NUM_ENTRIES`` entries spread evenly over the tensor: a row of an unused token alone would never move."""
    indices = torch.linspace(0, tensor.numel() - 1, min(NUM_ENTRIES, tensor.numel()), dtype=torch.float64).long()
    return tensor.detach().reshape(-1)[indices.to(tensor.device)].float().cpu().numpy()


def canary_of(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The entries that a teacher reports of its state."""
    return {name: canary_entries(state[name]) for name in canary_names(list(state))}


POLICY_SHARE: dict[str, Callable[[Any], float]] = {
    "frozen": lambda spec: 0.0,
    "live": lambda spec: 1.0,
    "ema": lambda spec: spec.update_rate,
}
"""By teacher kind: s in teacher <- (1 - s) teacher + s policy."""


class TeacherCanary:
    """Kept by the lead; ``restart`` after every anchoring or restore, ``observe`` after every follow.

    ``tolerance`` is relative to each entry's own magnitude. Rounding of a float32 average adds up to at most
    2^-24 (1 + 6r) / r of it, which is allowed on top where it is larger (r below about 0.07).
    """

    def __init__(self, tolerance: float = 1e-6):
        self._tolerance = tolerance
        self._spec: Any = None
        self._version: int | None = None
        self._expected: dict[str, np.ndarray] = {}
        self._rounding: dict[str, np.ndarray] = {}
        self.max_relative_error = 0.0
        """The largest so far, of the tolerated."""

    def restart(self, spec: Any, follow: Follow) -> None:
        """Begin from what the teacher reports now."""
        self._spec, self._version = spec, follow.teacher_version
        self._expected = {name: values.astype(np.float64) for name, values in follow.canary.items()}
        self._rounding = {name: np.zeros(values.shape) for name, values in follow.canary.items()}
        self.max_relative_error = 0.0

    def observe(self, follow: Follow, snapshot: Path, spec: Any = None) -> float:
        """Apply the snapshot to the expectation and compare; returns the largest relative error.

        The same version again is compared and not applied again. Raises TeacherError: ``teacher_diverged`` where the
        teacher's weights are not what its strategy gives, ``teacher_stale`` where it is at another version.
        """
        spec = self._spec if spec is None else spec
        if spec is None or self._version is None:
            raise TeacherError("the canary was asked before it was started with the teacher's state", reason="teacher_stale")
        self._advance(follow, snapshot, spec)
        worst = max(self._error(name, values, follow.teacher_version) for name, values in follow.canary.items())
        self.max_relative_error = max(self.max_relative_error, worst)
        return worst

    def _advance(self, follow: Follow, snapshot: Path, spec: Any) -> None:
        if follow.teacher_version == self._version:
            return
        share = POLICY_SHARE[spec.kind](spec)
        skipped = follow.teacher_version != self._version + 1
        if follow.teacher_version < self._version or (skipped and 0.0 < share < 1.0):
            raise TeacherError(
                f"the teacher reports update {follow.teacher_version}, the canary has seen up to {self._version}", reason="teacher_stale"
            )
        if set(follow.canary) != set(self._expected):
            raise TeacherError("the teacher reports other tensors than it was started with", reason="teacher_diverged")
        policy = read_snapshot(snapshot)
        for name in self._expected:
            self._apply(name, canary_entries(policy[name]).astype(np.float64), share)
        self._version = follow.teacher_version

    def _apply(self, name: str, policy: np.ndarray, share: float) -> None:
        before = self._expected[name]
        after = before + share * (policy - before)
        magnitude = np.maximum(np.abs(before), np.abs(policy))
        per_update = 0.0 if share in (0.0, 1.0) else FLOAT32_ROUNDING * min(1.0 + 6.0 * share, 4.0)
        self._expected[name] = after
        self._rounding[name] = (1.0 - share) * self._rounding[name] + per_update * magnitude

    def _error(self, name: str, values: np.ndarray, version: int) -> float:
        expected = self._expected[name]
        error = np.abs(values.astype(np.float64) - expected)
        allowed = np.maximum(self._tolerance * np.abs(expected), self._rounding[name])
        wrong = ~(error <= allowed)
        if wrong.any():
            worst = int(np.argmax(np.where(wrong, error - allowed, -1.0)))
            raise TeacherError(
                f"after update {version} the {self._spec.kind} teacher's {name} holds {values[worst]:.9g} where its strategy gives "
                f"{expected[worst]:.9g}; {int(wrong.sum())} of {len(values)} entries checked are off",
                reason="teacher_diverged",
                details={"tensor": name, "version": version, "max_abs_error": float(np.nan_to_num(error, nan=np.inf).max())},
            )
        scale = np.maximum(np.abs(expected), np.finfo(np.float32).tiny)
        return float((error / scale).max(initial=0.0))
