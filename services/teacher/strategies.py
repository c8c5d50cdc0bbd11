"""Which weights the teacher has: one row per teacher kind.

A teacher scores with *weight sets*: ``own`` (what it was anchored at; ``own/<domain>`` beside other domains' teachers),
``policy`` (the newest publication) and ``external/<key>``, each with an exponent: q ~ product of q_set ^ exponent, that is
logits = sum of exponent x logits. Only a teacher's own set has a rule of its own; ``policy`` is copied, externals stay.

States are dicts of float32 tensors by checkpoint name. ``update`` writes into the teacher's tensors, never into the
policy's. Invariant: an own set depends on its anchor, the policy's snapshots, the spec and the number of follows alone,
so it can be recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cluster.spec.teachers import external_key

State = dict[str, Tensor]
Part = tuple[str, float]
"""(name of a weight set, exponent)"""

OWN, POLICY, EXTERNAL = "own", "policy", "external/"


@dataclass(frozen=True, slots=True)
class Moment:
    """When an update is followed."""

    follows: int = 1
    """Batches of the stage that the teacher has followed, this one included."""
    ends_batch: bool = True
    """False for the optimizer steps of a batch of rollouts before its last."""
    new_update: bool = True
    """False where a batch ends at an update that was followed already, because its last steps changed nothing."""


def own_set(domain: str) -> str:
    """The name of a teacher's own weight set; ``domain`` is empty where the stage has one teacher."""
    return f"{OWN}/{domain}" if domain else OWN


# -- how the own weights move ----------------------------------------------------------------------------------------


def stay(teacher: State, policy: Mapping[str, Tensor], spec: Any, moment: Moment) -> None:
    """Unchanged."""


def average(teacher: State, policy: Mapping[str, Tensor], spec: Any, moment: Moment) -> None:
    """Exponential moving average, teacher <- (1 - r) teacher + r policy (SDPO, 2601.20802, A.2)."""
    if moment.new_update if spec.every == "optimizer_step" else moment.ends_batch:
        blend(teacher, policy, spec.update_rate)


def jump(teacher: State, policy: Mapping[str, Tensor], spec: Any, moment: Moment) -> None:
    """Restart and freeze: teacher <- (1 - gamma) teacher + gamma policy every ``period`` follows (2607.01763)."""
    if moment.ends_batch and moment.follows % spec.period == 0:
        blend(teacher, policy, spec.gamma)


def blend(state: State, other: Mapping[str, Tensor], share: float) -> None:
    """state <- (1 - share) state + share other, in float32: in bfloat16 a step of rate 0.05 rounds to nothing."""
    for name, tensor in state.items():
        tensor.lerp_(other[name].to(tensor.device, non_blocking=True), share)


# -- what a teacher scores with --------------------------------------------------------------------------------------


def own_alone(spec: Any, own: str) -> tuple[Part, ...]:
    return ((own, 1.0),)


def policy_alone(spec: Any, own: str) -> tuple[Part, ...]:
    return ((POLICY, 1.0),)


def external_alone(spec: Any, own: str) -> tuple[Part, ...]:
    return ((EXTERNAL + external_key(spec), 1.0),)


def own_and_policy(spec: Any, own: str) -> tuple[Part, ...]:
    """Trust region: anchor^(1 - mix) policy^mix (SDPO, 2601.20802, B.2)."""
    return ((own, 1.0 - spec.mix), (POLICY, spec.mix))


SOURCES: dict[str, Callable[[Any, str], tuple[Part, ...]]] = {
    "anchor": own_alone,
    "policy": policy_alone,
    "external": external_alone,
}


def two_sources(spec: Any, own: str) -> tuple[Part, ...]:
    """first^(1 - weight) second^weight (G-OPD, 2602.12125)."""
    ((first, _),) = SOURCES[spec.first.kind](spec.first, own)
    ((second, _),) = SOURCES[spec.second.kind](spec.second, own)
    return ((first, 1.0 - spec.weight), (second, spec.weight))


def alone(spec: Any) -> dict[str, Any]:
    return {"": spec}


def by_domain(spec: Any) -> dict[str, Any]:
    return dict(spec.teachers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How a teacher scores and how its own weights move."""

    parts: Callable[[Any, str], tuple[Part, ...]]
    """(spec, name of its own set) -> the sets that it scores with"""
    update: Callable[[State, Mapping[str, Tensor], Any, Moment], None] = stay
    """(own state, policy, spec, moment): one publication, in place."""
    sees_every_update: bool = False
    """Whether each publication must be followed exactly once; otherwise the newest is enough."""
    teachers: Callable[[Any], dict[str, Any]] = alone
    """spec -> the single teachers in it, by domain."""


STRATEGIES: dict[str, Strategy] = {
    "frozen": Strategy(parts=own_alone),
    "live": Strategy(parts=policy_alone),
    "ema": Strategy(parts=own_alone, update=average, sees_every_update=True),
    "restart_and_freeze": Strategy(parts=own_alone, update=jump, sees_every_update=True),
    "trust_region": Strategy(parts=own_and_policy),
    "external": Strategy(parts=external_alone),
    "mix": Strategy(parts=two_sources),
    "per_domain": Strategy(parts=lambda spec, own: (), teachers=by_domain),
}


def strategy_of(spec: Any) -> Strategy:
    if spec.kind not in STRATEGIES:
        raise ValueError(f"teacher kind {spec.kind!r} is unknown; allowed are {sorted(STRATEGIES)}")
    return STRATEGIES[spec.kind]


def parts_of(spec: Any, own: str) -> tuple[Part, ...]:
    """What a single teacher scores with; a set whose exponent is 0 is not needed, and not held."""
    return tuple(part for part in strategy_of(spec).parts(spec, own) if part[1] != 0.0)
