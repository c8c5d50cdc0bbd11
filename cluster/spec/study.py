"""The study file: arms (named overrides of a base job) x stage orders x seeds, and what the runs are expected to show.

Invariant: a study is a function of its file. ``expand`` gives the same members, in the same order, on every machine, and every
member is a whole job file; all of them are scored on the same problems with the same seeds.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from cluster.spec.base import Name, Spec
from cluster.spec.job import JobSpec

MAX_MEMBERS = 2000
ALL_STAGES = "*"
OBJECTS = ("evaluation", "labels")
"""Fields of a job file that every member adds to, so that an arm may only set them to an object."""

CONTRASTS = ("hypotheses", "comparisons")
"""Fields of a study that compare arms."""

Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""As ``JobSpec.seed``."""

FIGURES: dict[str, str] = {
    "gain": "mean over stages of the own domains' score after the stage minus before it",
    "first_stage_gain": "the same of the first stage alone",
    "last_stage_gain": "the same of the last stage alone",
    "gain_change": "last_stage_gain minus first_stage_gain",
    "early_gain": "mean over stages of the own domains' score at the stage's first evaluation minus before the stage",
    "first_stage_early_gain": "the same of the first stage that counts alone",
    "start_score": "mean over stages of the own domains' score before the stage",
    "early_score": "mean over stages of the own domains' score at the stage's first evaluation",
    "end_score": "mean over stages of the own domains' score right after the stage",
    "average_score": "mean over the trained domains of the last row",
    "backward_transfer": "mean over stages but the last of the last row's score minus the score right after the stage",
    "forgetting": "mean over stages but the last of the best earlier score minus the last row's (biased upward)",
    "forward_transfer": "mean over stages but the first of the score before the stage minus the base's",
    "out_of_domain_change": "mean over suites that no stage trains on of the last row's score minus the base's",
    "parameter_drift": "relative L2 distance of the last weights from the base's",
    "stage_drift": "mean over stages of the relative L2 distance of a stage's last weights from its first",
    "spectral_drift": "normalised spectral shift of the last weights against the base's, mean over matrices by size",
    "drift_at_matched_gain": "mean over stages of stage_drift, interpolated to 0.9 of the largest own gain that both arms reached",
    "response_kl_own": "mean over stages of KL(policy||base) on the stage's own probes at its end, nats per token",
    "response_kl_earlier": "KL(policy||base) on the probes of all stages but the last, after the last one, nats per token",
    "response_similarity": "median cosine to the base's answers over the trained domains' probes, after the last stage",
    "truncation_rate": "mean over the trained domains of the last row's share of completions at the limit",
    "collapse_warnings": "number of collapse warnings raised by steps (not by evaluations)",
    "amplification_warnings": "those of them about amplified format tokens or n-grams",
    "lost_domains": "share of the trained domains that the last row scores below half of the base's score",
    "collapsed_stages": "share of stages that end below half of their own best score, of where they began, or of the base's score; stages that a run which failed by its method never ended count too",
}
"""Figures of one member that a hypothesis may compare, in words; ``services/evaluation/studies/member_figures.py`` computes them."""


class Arm(Spec):
    """A named set of changes to the base job."""

    name: Name
    title: str | None = Field(None, max_length=80, description="how tables and plots call it; its name where null")
    set: dict[str, Any] = Field({}, description="dotted path into the job file -> value that replaces the field; stages.<name> is one stage, stages.* are all")
    orders: tuple[Name, ...] | None = Field(None, min_length=1, description="the orders that it runs in; all where null")
    priority: int = Field(0, ge=0, le=99, description="members of lower numbers run first")


class Order(Spec):
    """A sequence of the base job's stages."""

    name: Name
    stages: tuple[Name, ...] = Field(min_length=1, max_length=64, description="names of the base job's stages, each at most once")
    seeds: tuple[Seed, ...] = Field(min_length=1, max_length=MAX_MEMBERS, description="one run of every arm for each")
    priority: int = Field(0, ge=0, le=99, description="added to an arm's")
    setup: tuple[Name, ...] = Field((), description="those of the stages that only prepare something, such as a recording: they count in no figure")

    @model_validator(mode="after")
    def _once(self) -> Order:
        for field in ("stages", "seeds"):
            values = getattr(self, field)
            repeated = next((value for value, count in Counter(values).items() if count > 1), None)
            if repeated is not None:
                raise ValueError(f"{field} has {repeated!r} more than once")
        for name in self.setup:
            if name not in self.stages:
                raise ValueError(f"setup has {name!r}, which is not among the order's stages {', '.join(self.stages)}")
        if set(self.setup) == set(self.stages):
            raise ValueError("setup has every stage of the order; one at least must count")
        return self


class Comparison(Spec):
    """One figure of an arm beside another arm's, thought of after the runs: shown with its interval and never judged."""

    name: Name
    claim: str = Field(min_length=1, max_length=400, description="in words")
    figure: str = Field(description="one of: " + ", ".join(FIGURES))
    arm: Name
    against: Name | None = Field(None, description="another arm, paired by order and seed; null compares the figure with 0")
    orders: tuple[Name, ...] | None = Field(None, min_length=1, description="the orders that are looked at; all where null")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.figure not in FIGURES:
            raise ValueError(f"figure {self.figure!r} is not known; allowed are {', '.join(FIGURES)}")
        if self.figure == "drift_at_matched_gain" and self.against is None:
            raise ValueError("figure drift_at_matched_gain compares two arms; against must name the other one")
        return self


class Hypothesis(Comparison):
    """A claim, written down before the runs: how one figure of an arm compares with another arm's."""

    expect: Literal["higher", "lower", "similar"]
    margin: float = Field(0.0, ge=0.0, description="similar: the interval must lie within +- margin; otherwise the difference must be beyond it")

    @model_validator(mode="after")
    def _margin(self) -> Self:
        if self.expect == "similar" and self.margin == 0.0:
            raise ValueError("expect: similar needs a margin above 0")
        return self


class StudySpec(Spec):
    """Arms x orders x seeds of one base job."""

    version: Literal[1] = 1
    name: Name
    description: str | None = Field(None, max_length=4000)
    base: JobSpec
    arms: tuple[Arm, ...] = Field(min_length=1, max_length=100)
    orders: tuple[Order, ...] = Field((), max_length=100, description="the base job's own order with its own seed where empty")
    hypotheses: tuple[Hypothesis, ...] = Field((), max_length=200)
    comparisons: tuple[Comparison, ...] = Field((), max_length=200, description="what was thought of after the runs; the report keeps it apart from the hypotheses")
    labels: dict[str, str] = Field({}, max_length=32)

    @model_validator(mode="after")
    def _holds_together(self) -> StudySpec:
        """Everything that is wrong with the names is told at once: the context's ``places`` has a pointer and a text for each."""
        found = [place for field in ("arms", "orders", *CONTRASTS) for place in _names_once(field, [item.name for item in getattr(self, field)])]
        stages, orders, arms = {stage.name for stage in self.base.stages}, {o.name for o in self.all_orders()}, {arm.name for arm in self.arms}
        for index, order in enumerate(self.orders):
            found += _known(f"orders.{index}.stages", order.stages, stages, "a stage of the base job")
        for index, arm in enumerate(self.arms):
            found += _known(f"arms.{index}.orders", arm.orders or (), orders, "an order")
        for field in CONTRASTS:
            for index, item in enumerate(getattr(self, field)):
                found += _known(f"{field}.{index}.orders", item.orders or (), orders, "an order")
                found += _known(f"{field}.{index}.arm", (item.arm,), arms, "an arm")
                found += _known(f"{field}.{index}.against", (item.against,) if item.against else (), arms, "an arm")
        if found:
            text = "; ".join(text for _, _, text in found)
            raise PydanticCustomError(found[0][0], "{text}", {"text": text, "place": found[0][1], "places": found})
        count = sum(len(order.seeds) for arm in self.arms for order in self.all_orders() if arm.orders is None or order.name in arm.orders)
        if count > MAX_MEMBERS:
            raise ValueError(f"the study has {count} members; at most {MAX_MEMBERS} are allowed")
        return self

    def all_orders(self) -> tuple[Order, ...]:
        return self.orders or (Order(name="as-given", stages=tuple(stage.name for stage in self.base.stages), seeds=(self.base.seed,)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run of a study."""

    position: int
    """Its place in the queue of the study, from 0."""
    arm: str
    order: str
    seed: int
    document: dict[str, Any]
    """The job file, whole, before it is checked against the environment."""

    @property
    def digest(self) -> str:
        """Of the job file's canonical JSON: a run of the same file on any machine may stand in for this one."""
        text = json.dumps(self.document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


class OverrideFault(ValueError):
    """A path of ``set`` that leads nowhere. ``pointer`` is its place in the study file."""

    def __init__(self, pointer: str, detail: str):
        super().__init__(detail)
        self.pointer, self.detail = pointer, detail


def expand(study: StudySpec) -> tuple[Member, ...]:
    """Every member, the queue's first first: by priority, then seed by seed, order by order, arm by arm, so that a study
    that was stopped has as many whole seeds of all its arms as it could. Raises ``OverrideFault``."""
    found = []
    for arm_index, arm in enumerate(study.arms):
        for order_index, order in enumerate(study.all_orders()):
            if arm.orders is not None and order.name not in arm.orders:
                continue
            for seed_index, seed in enumerate(order.seeds):
                rank = (arm.priority + order.priority, seed_index, order_index, arm_index)
                found.append((rank, arm.name, order.name, seed, member_document(study, arm_index, order, seed)))
    found.sort(key=lambda item: item[0])
    return tuple(
        Member(position=position, arm=arm, order=order, seed=seed, document=document)
        for position, (_, arm, order, seed, document) in enumerate(found)
    )


def member_document(study: StudySpec, arm_index: int, order: Order, seed: int) -> dict[str, Any]:
    """The job file of one member: base, then the arm's changes, then the order's stages and the seed."""
    arm = study.arms[arm_index]
    document = study.base.model_dump(mode="json", exclude_unset=True)
    for path, value in arm.set.items():
        _set(document, path, copy.deepcopy(value), set_pointer(arm_index, path))
    by_name = {stage["name"]: stage for stage in document["stages"]}
    document["stages"] = [by_name[name] for name in order.stages]
    document["seed"] = seed
    document["name"] = member_name(study.name, arm.name, order.name, seed)
    evaluation = document.setdefault("evaluation", {})
    if evaluation.get("seed") is None:
        evaluation["seed"] = study.base.seed  # one set of problems for all, so that the base is scored once
    document["labels"] = {**study.labels, **document.get("labels", {}), "study": study.name, "arm": arm.name, "order": order.name}
    return document


def member_name(study: str, arm: str, order: str, seed: int) -> str:
    """Readable, at most 63 characters; a long one ends in a digest of the whole."""
    name = f"{study}-{arm}-{order}-{seed}"
    if len(name) <= 63:
        return name
    return f"{name[:54]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _set(document: dict[str, Any], path: str, value: Any, pointer: str) -> None:
    """Replace the field at a dotted path; what lies on the way and is not written yet is made."""
    parts = path.split(".")
    if parts == ["stages"] or parts[0] in ("seed", "name"):
        raise OverrideFault(pointer, f"{path!r} cannot be set by an arm: stages are chosen by orders, seeds and names by the study; set stages.<name>.<field>")
    if len(parts) == 1 and parts[0] in OBJECTS and not isinstance(value, dict):
        raise OverrideFault(pointer, f"{path!r} is {json.dumps(value)[:60]}; allowed is an object")
    if parts[0] != "stages":
        _descend(document, parts, value, path, pointer)
        return
    if len(parts) < 3:
        raise OverrideFault(pointer, f"{path!r} names a stage but no field of it; set stages.<name>.<field> or stages.*.<field>")
    names = [stage["name"] for stage in document["stages"]]
    if parts[1] != ALL_STAGES and parts[1] not in names:
        raise OverrideFault(pointer, f"{path!r}: the base job has no stage {parts[1]!r}; it has {', '.join(names)}")
    if parts[2] == "name":
        raise OverrideFault(pointer, f"{path!r} cannot be set by an arm: orders refer to stages by their names")
    for stage in document["stages"]:
        if parts[1] in (ALL_STAGES, stage["name"]):
            _descend(stage, parts[2:], copy.deepcopy(value), path, pointer)


def _descend(holder: dict[str, Any], parts: list[str], value: Any, path: str, pointer: str) -> None:
    for part in parts[:-1]:
        below = holder.get(part)
        if below is None:
            below = holder[part] = {}
        if not isinstance(below, dict):
            raise OverrideFault(pointer, f"{path!r}: {part!r} is {json.dumps(below)[:60]}, which has no fields")
        holder = below
    holder[parts[-1]] = value


def override_faults(study: StudySpec) -> list[OverrideFault]:
    """Every path of every arm that leads nowhere; ``expand`` raises the first of them."""
    found = []
    for arm_index, arm in enumerate(study.arms):
        document = study.base.model_dump(mode="json", exclude_unset=True)
        for path, value in arm.set.items():
            try:
                _set(document, path, copy.deepcopy(value), set_pointer(arm_index, path))
            except OverrideFault as fault:
                found.append(fault)
    return found


def set_pointer(arm_index: int, path: str) -> str:
    """Where an arm's override stands in the study file."""
    return f"/arms/{arm_index}/set/{path.replace('~', '~0').replace('/', '~1')}"


Place = tuple[str, str, str]
"""Kind of the fault, pointer into the study file, text."""


def _names_once(field: str, names: list[str]) -> list[Place]:
    return [
        ("duplicate", f"/{field}/{index}/name", f"{field}.{index}.name: {name!r} is the name of {field}.{names.index(name)} already")
        for index, name in enumerate(names)
        if names.index(name) < index
    ]


def _known(place: str, names: tuple[str, ...], allowed: set[str], what: str) -> list[Place]:
    return [
        ("unknown_name", "/" + place.replace(".", "/"), f"{place}: {name!r} is not {what}; there are {', '.join(sorted(allowed))}")
        for name in names
        if name not in allowed
    ]
