"""The terms of a stage's loss, ready to run: what the loss head needs of a composition, and nothing else of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.objectives import OBJECTIVE_METRICS, OBJECTIVES, Objective


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerm:
    """One summand of the loss."""

    name: str
    objective: Objective
    spec: Any
    """The objective's own spec."""
    coefficient: float
    support: str
    """``sampled``, ``top_k`` or ``full``."""
    importance_cap: float | None
    needs_teacher: bool

    @property
    def metric_names(self) -> tuple[str, ...]:
        own = tuple(f"{self.name}/{metric}" for metric in OBJECTIVE_METRICS.get(self.spec.kind, ()))
        capped = () if self.importance_cap is None else (f"{self.name}/importance_mean", f"{self.name}/importance_capped_share")
        return own + capped


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLoss:
    """All terms of a stage and the temperature at which every log-probability of it is taken."""

    terms: tuple[LossTerm, ...]
    temperature: float
    has_rollout_logprobs: bool
    """False for demonstrations: nobody sampled them, so there is no mismatch to measure and no ratio to correct."""

    @property
    def has_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms)

    @property
    def widest_support(self) -> str:
        """The support on which policy and teacher are compared for the record."""
        kinds = {term.support for term in self.terms if term.needs_teacher}
        return next((kind for kind in ("full", "top_k") if kind in kinds), "sampled")

    @property
    def sum_names(self) -> tuple[str, ...]:
        return ("loss/total", *(f"loss/{term.name}" for term in self.terms))

    @property
    def mean_names(self) -> tuple[str, ...]:
        names = ["policy/entropy_nats"]
        if self.has_rollout_logprobs:
            names += ["policy/mismatch_nats_mean", "policy/sampled_kl_to_rollout_nats"]
        if self.has_teacher:
            names += ["teacher/kl_nats", "teacher/sampled_kl_nats", "teacher/positive_share"]
            if any(term.support == "top_k" for term in self.terms):
                names += ["policy/support_mass", "teacher/support_mass"]
        return (*names, *(name for term in self.terms for name in term.metric_names))

    @property
    def maximum_names(self) -> tuple[str, ...]:
        return ("policy/mismatch_nats_max",) if self.has_rollout_logprobs else ()


def stage_loss(composition: Any, *, temperature: float) -> StageLoss:
    """Look every term of a composition up in the tables."""
    sampled = composition.experience.kind == "policy"
    return StageLoss(
        terms=tuple(_term(term, sampled) for term in composition.terms), temperature=temperature, has_rollout_logprobs=sampled
    )


def _term(term: Any, sampled: bool) -> LossTerm:
    return LossTerm(
        name=term.name,
        objective=OBJECTIVES[term.objective.kind],
        spec=term.objective,
        coefficient=term.coefficient,
        support=term.support.kind,
        importance_cap=term.importance_cap if sampled else None,
        needs_teacher=term.needs_teacher,
    )
