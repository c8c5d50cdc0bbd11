"""The terms of a stage's loss, ready to run: what the loss head needs of a composition, and nothing else of it.

The invariant: every name of a metric is known here, before any row is seen, so that all ranks agree on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.objectives import OBJECTIVES, Objective, objective_metrics

POSITION_BUCKETS = (0, 16, 64, 256, 1024, 4096)
"""First token of each bucket of positions in a completion; the last one is open."""


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
    tail: str | None
    """``bucket``, ``renormalise``, ``drop`` or ``sampled_correction`` with a top-K support, else None."""
    importance_cap: float | None
    importance_level: str
    """``token`` or ``sequence_mean``."""
    ratio_base: str
    """What a policy gradient's ratio is against: ``policy`` (before the batch's first update) or ``rollout``."""
    needs_teacher: bool
    needs_reference: bool

    @property
    def kind(self) -> str:
        return self.spec.kind

    @property
    def is_distilling(self) -> bool:
        """Whether the objective itself compares with the teacher; a policy gradient's advantages are made when packing."""
        return self.needs_teacher and self.kind != "policy_gradient"

    @property
    def has_own_ratio(self) -> bool:
        """Whether the objective itself carries the policy before the batch's first update to the policy now."""
        return self.kind == "policy_gradient" and self.ratio_base == "policy"

    @property
    def metric_names(self) -> tuple[str, ...]:
        own = objective_metrics(self.spec)
        weighed = () if self.importance_cap is None else ("importance_mean", "importance_capped_share")
        return tuple(f"{self.name}/{metric}" for metric in (*own, *weighed))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLoss:
    """All terms of a stage and the temperature at which every log-probability of it is taken."""

    terms: tuple[LossTerm, ...]
    temperature: float
    has_rollout_logprobs: bool
    """False where they are missing (demonstrations) or not comparable (truncated sampling): there is then no mismatch to
    measure and no ratio to correct."""
    top_k: Any = None
    """The one top-K support of the stage: k, support_from, join_sampled; None where no term has one."""

    @property
    def has_teacher(self) -> bool:
        return any(term.needs_teacher for term in self.terms)

    @property
    def supports(self) -> frozenset[str]:
        """Kinds of support on which some term compares with the teacher."""
        return frozenset(term.support for term in self.terms if term.is_distilling)

    @property
    def widest_support(self) -> str:
        """The support on which policy and teacher are compared for the record."""
        return next((kind for kind in ("full", "top_k") if kind in self.supports), "sampled")

    @property
    def ranks_in_chunk(self) -> bool:
        """Whether the top-K support is the policy's own, taken from the forward at hand."""
        return self.top_k is not None and self.top_k.support_from == "policy"

    @property
    def needs_full_teacher(self) -> bool:
        return "full" in self.supports or self.ranks_in_chunk

    @property
    def needs_sequence_weights(self) -> bool:
        return any(term.importance_cap is not None and term.importance_level == "sequence_mean" for term in self.terms)

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
            names += [f"teacher/gap_nats/at_{start}" for start in POSITION_BUCKETS]
            if "top_k" in self.supports:
                names += ["policy/support_mass", "teacher/support_mass"]
            if self.widest_support != "sampled":
                names.append("teacher/support_overlap")
        return (*names, *(name for term in self.terms for name in term.metric_names))

    @property
    def maximum_names(self) -> tuple[str, ...]:
        return ("policy/mismatch_nats_max",) if self.has_rollout_logprobs else ()


def stage_loss(composition: Any, *, temperature: float, truncated_sampling: bool = False) -> StageLoss:
    """Look every term of a composition up in the tables.

    ``truncated_sampling``: rollouts were drawn with top_p or top_k, so their recorded log-probabilities are renormalised in
    the nucleus and not comparable with the policy's.
    """
    comparable = composition.experience.kind != "demonstrations" and not truncated_sampling
    return StageLoss(
        terms=tuple(_term(term, comparable) for term in composition.terms),
        temperature=temperature,
        has_rollout_logprobs=comparable,
        top_k=next((term.support for term in composition.terms if term.support.kind == "top_k"), None),
    )


def _term(term: Any, comparable: bool) -> LossTerm:
    cap = term.importance_cap if comparable else None
    return LossTerm(
        name=term.name,
        objective=OBJECTIVES[term.objective.kind],
        spec=term.objective,
        coefficient=term.coefficient,
        support=term.support.kind,
        tail=term.support.tail if term.support.kind == "top_k" else None,
        importance_cap=cap,
        importance_level=term.importance_level,
        # with an importance weight the engine's probability enters there, and must not enter a second time through the ratio
        ratio_base="rollout" if comparable and cap is None else "policy",
        needs_teacher=term.needs_teacher,
        needs_reference=term.needs_reference,
    )
