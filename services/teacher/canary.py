"""Proof at run time that the teacher's weights are what its strategy gives.

The lead keeps a few hundred entries of the teacher in float64, applies the strategy's closed form to them from the
published snapshots, and compares with what the teacher reports after every follow. It shares no arithmetic with
``strategies.py``. Invariant: every publication is applied to the expectation exactly once, and a set that must not move
(an anchor, an external model) is expected exactly where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    """float32 entries of a few tensors of every weight set, by ``<set>:<tensor>``; see ``canary_entries``."""
    follows: int = 0
    """Batches of the stage that were followed."""
    before: int | None = None
    """The update that the teacher was at before the last one that it followed; None before the first of a stage."""
    masked_token_ids: dict[str, frozenset[int]] = field(default_factory=dict)
    """By domain (the empty name: the only teacher), ids that mean another token to an external teacher, or none: their weight in
    every teacher term must be 0. Domains without such ids are left out."""


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


def canary_of_sets(sets: Mapping[str, Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """The same of several weight sets, by ``<set>:<tensor>``."""
    return {f"{name}:{tensor}": entries for name, state in sets.items() for tensor, entries in canary_of(state).items()}


def _average_share(spec: Any, follows: int, ends_batch: bool, new_update: bool) -> float:
    moves = {"optimizer_step": new_update, "rollout_batch": ends_batch}
    return spec.update_rate if moves[spec.every] else 0.0


def _jump_share(spec: Any, follows: int, ends_batch: bool, new_update: bool) -> float:
    return spec.gamma if ends_batch and follows and follows % spec.period == 0 else 0.0


def _never(spec: Any, follows: int, ends_batch: bool, new_update: bool) -> float:
    return 0.0


OWN_SHARE: dict[str, Callable[[Any, int, bool, bool], float]] = {
    "frozen": _never,
    "live": _never,
    "ema": _average_share,
    "restart_and_freeze": _jump_share,
    "trust_region": _never,
    "external": _never,
    "mix": _never,
    "per_domain": _never,
}
"""By teacher kind: s in own <- (1 - s) own + s policy, from (spec, follows of the stage with this one, ends_batch, new_update).
The set ``policy`` is the policy always, external models never move."""

AVERAGING = ("ema", "restart_and_freeze")
"""Kinds that must see every publication."""


def _teachers_of(spec: Any) -> dict[str, Any]:
    """The single teachers of a spec, by the name of their own weight set."""
    by_domain = getattr(spec, "teachers", None)
    return {"own": spec} if by_domain is None else {f"own/{domain}": single for domain, single in by_domain.items()}


class TeacherCanary:
    """Kept by the lead; ``restart`` after every anchoring or restore, ``observe`` after every follow.

    ``tolerance`` is relative to each entry's own magnitude. Rounding of a float32 average adds up to at most
    2^-24 (1 + 6r) / r of it, which is allowed on top where it is larger (r below about 0.07).
    """

    def __init__(self, tolerance: float = 1e-6):
        self._tolerance = tolerance
        self._spec: Any = None
        self._version: int | None = None
        self._follows = 0
        self._inside_batch = False
        self._expected: dict[str, np.ndarray] = {}
        self._rounding: dict[str, np.ndarray] = {}
        self.max_relative_error = 0.0
        """The largest so far, of the tolerated."""

    def restart(self, spec: Any, follow: Follow) -> None:
        """Begin from what the teacher reports now."""
        self._spec, self._version, self._follows, self._inside_batch = spec, follow.teacher_version, follow.follows, False
        self._expected = {name: values.astype(np.float64) for name, values in follow.canary.items()}
        self._rounding = {name: np.zeros(values.shape) for name, values in follow.canary.items()}

    def observe(self, follow: Follow, snapshot: Path, *, after: int | None = None, ends_batch: bool = True) -> float:
        """Apply the publication that the teacher has followed, compare, return the largest relative error.

        ``after`` and ``ends_batch`` are the ones that the teacher was told; where ``after`` is None, the update is expected that
        the teacher says it came from. The same version again is compared and not applied again. Raises TeacherError:
        ``teacher_diverged`` where the teacher's weights are not what its strategy gives, ``teacher_stale`` where it is at
        another version.
        """
        if self._spec is None or self._version is None:
            raise TeacherError("the canary was asked before it was started with the teacher's state", reason="teacher_stale")
        expected = follow.teacher_version - 1 if follow.before is None else follow.before
        self._advance(follow, snapshot, expected if after is None else after, ends_batch)
        worst = max((self._error(name, values, follow.teacher_version) for name, values in follow.canary.items()), default=0.0)
        self.max_relative_error = max(self.max_relative_error, worst)
        return worst

    def _advance(self, follow: Follow, snapshot: Path, after: int, ends_batch: bool) -> None:
        new_update = follow.teacher_version != self._version
        if not new_update and not (self._inside_batch and ends_batch):
            return
        teachers = _teachers_of(self._spec)
        averaging = any(single.kind in AVERAGING for single in teachers.values())
        if follow.teacher_version < self._version or (averaging and new_update and after != self._version):
            raise TeacherError(
                f"the teacher reports update {follow.teacher_version}, the canary has seen up to {self._version}",
                reason="teacher_stale",
            )
        if set(follow.canary) != set(self._expected):
            raise TeacherError("the teacher reports other tensors than it was started with", reason="teacher_diverged")
        follows = self._follows + int(ends_batch)
        if follow.follows != follows:
            raise TeacherError(
                f"the teacher reports {follow.follows} batches of the stage, the canary has seen {follows}",
                reason="teacher_diverged",
            )
        shares = {own: OWN_SHARE[single.kind](single, follows, ends_batch, new_update) for own, single in teachers.items()}
        shares["policy"] = 1.0
        self._apply_all(shares, snapshot)
        self._version, self._follows, self._inside_batch = follow.teacher_version, follows, not ends_batch

    def _apply_all(self, shares: Mapping[str, float], snapshot: Path) -> None:
        """Every expectation moves by its set's share; sets that are not named stay."""
        moving = [name for name in self._expected if shares.get(name.rpartition(":")[0], 0.0) != 0.0]
        policy = read_snapshot(snapshot) if moving else {}
        for name in moving:
            of_set, _, tensor = name.rpartition(":")
            self._apply(name, canary_entries(policy[tensor]).astype(np.float64), shares[of_set])

    def _apply(self, name: str, policy: np.ndarray, share: float) -> None:
        before = self._expected[name]
        after = before + share * (policy - before)
        magnitude = np.maximum(np.abs(before), np.abs(policy))
        per_update = 0.0 if share == 1.0 else FLOAT32_ROUNDING * min(1.0 + 6.0 * share, 4.0)
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
