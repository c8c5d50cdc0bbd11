"""Which weights the teacher has: one pair of small functions per teacher kind.

States are dicts of float32 tensors by checkpoint name. ``update`` may write into the teacher's tensors, never into the
policy's. Invariant: a strategy depends on the teacher's state, the policy's weights and the spec alone, so a state can be
recomputed from the published snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How a teacher begins and how it moves."""

    initial: Callable[[Mapping[str, Tensor]], State]
    """policy -> state; the tensors may be the policy's own, the caller copies them before the first update."""
    update: Callable[[State, Mapping[str, Tensor], Any], State]
    """(teacher, policy, spec) -> teacher after one publication."""
    sees_every_update: bool
    """Whether each publication must be followed exactly once; otherwise the newest is enough."""


def same_as_policy(policy: Mapping[str, Tensor]) -> State:
    """A teacher starts with the weights that it is anchored at."""
    return dict(policy)


def stay(teacher: State, policy: Mapping[str, Tensor], spec: Any) -> State:
    """Frozen: unchanged."""
    return teacher


def copy(teacher: State, policy: Mapping[str, Tensor], spec: Any) -> State:
    """Live: the policy's weights."""
    for name, tensor in teacher.items():
        tensor.copy_(policy[name])
    return teacher


def average(teacher: State, policy: Mapping[str, Tensor], spec: Any) -> State:
    """Exponential moving average, teacher <- (1 - r) teacher + r policy (SDPO, 2601.20802, A.2).

    In float32: in bfloat16 a step of rate 0.05 rounds to nothing and the average never moves.
    """
    for name, tensor in teacher.items():
        tensor.lerp_(policy[name].to(tensor.device, non_blocking=True), spec.update_rate)
    return teacher


STRATEGIES: dict[str, Strategy] = {
    "frozen": Strategy(initial=same_as_policy, update=stay, sees_every_update=False),
    "live": Strategy(initial=same_as_policy, update=copy, sees_every_update=False),
    "ema": Strategy(initial=same_as_policy, update=average, sees_every_update=True),
}
