"""Methods that are legal and still worth a word: biased, idle at first, or other than their paper. Refusals: ``refusals.py``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.spec.contexts import Demonstration, NoContext, SiblingSolution
from cluster.spec.masks import PrefixMask
from cluster.spec.objectives import CrossEntropy, EntropyBonus, ForwardKL, PolicyGradient, ReferenceKL
from cluster.spec.supports import SampledSupport, TopKSupport
from cluster.spec.teachers import (
    AnchorSource,
    EmaTeacher,
    FrozenTeacher,
    MixTeacher,
    PerDomainTeacher,
    PolicySource,
    RestartAndFreezeTeacher,
    TrustRegionTeacher,
    single_teachers,
)

if TYPE_CHECKING:
    from cluster.spec.job import ResolvedStage


def method_warnings(stage: ResolvedStage) -> list[str]:
    """What is worth saying of a stage's method, each as the rest of a sentence about the stage."""
    parts = (_idle_teacher, _restarts, _truncated_estimates, _dropped_tail, _extrapolated_sums, _contexts, _masks, _own_tokens)
    return [words for part in parts for words in part(stage)]


def _idle_teacher(stage: ResolvedStage) -> Iterator[str]:
    """A teacher that is the policy at the first step and reads no more: no gradient, so it stays the policy."""
    composition = stage.composition
    if composition.teacher is None or composition.experience.kind != "policy":
        return
    anchored = stage.index == 0 or stage.boundary.teacher == "re_anchor"
    if not anchored or any(_moves(term.objective, stage) for term in composition.terms):
        return
    if all(_begins_as_policy(_teacher_of(stage, part.name)) and _is_plain(stage, part.name) for part in stage.domains):
        yield (
            "the teacher begins as the policy itself and reads nothing more, so the first gradient is zero and nothing else moves the policy; "
            "give a context, boundary.teacher keep or reset, or another teacher"
        )


def _teacher_of(stage: ResolvedStage, domain: str) -> object:
    teacher = stage.composition.teacher
    return teacher.teachers.get(domain) if isinstance(teacher, PerDomainTeacher) else teacher


def _is_plain(stage: ResolvedStage, domain: str) -> bool:
    return isinstance(stage.composition.context_of(domain), NoContext)


def _begins_as_policy(teacher: object) -> bool:
    if isinstance(teacher, FrozenTeacher | EmaTeacher | RestartAndFreezeTeacher):
        return teacher.initial is None
    if isinstance(teacher, MixTeacher):
        return all(isinstance(source, AnchorSource | PolicySource) for source in (teacher.first, teacher.second))
    return isinstance(teacher, TrustRegionTeacher)


def _moves(objective: object, stage: ResolvedStage) -> bool:
    """Whether an objective has a gradient where teacher and policy are one."""
    if isinstance(objective, PolicyGradient):
        return objective.advantage.outcome_weight > 0.0
    if isinstance(objective, ReferenceKL):
        return stage.index > 0 and stage.boundary.reference != "re_anchor"
    return isinstance(objective, CrossEntropy | EntropyBonus)


def _restarts(stage: ResolvedStage) -> Iterator[str]:
    singles = () if stage.composition.teacher is None else single_teachers(stage.composition.teacher)
    for teacher in (one for one in singles if isinstance(one, RestartAndFreezeTeacher)):
        if teacher.period > stage.steps:
            yield f"the teacher would jump after {teacher.period} steps, the stage has {stage.steps}: it stays frozen"
        if stage.index > 0 and stage.boundary.teacher == "re_anchor":
            yield "boundary.teacher re_anchor sets the teacher to the policy and drops what earlier jumps blended; keep goes on with it"


def _truncated_estimates(stage: ResolvedStage) -> Iterator[str]:
    if not stage.sampling.is_truncated or stage.composition.experience.kind == "demonstrations":
        return
    biased = [
        term.name
        for term in stage.composition.terms
        if isinstance(term.objective, ReferenceKL)
        or (term.needs_teacher and isinstance(term.support, SampledSupport))
        or (isinstance(term.support, TopKSupport) and term.support.tail == "sampled_correction")
    ]
    if biased:
        yield f"terms {biased} estimate by the sampled token, which top_p / top_k draw from the nucleus alone: their estimates are biased"


def _dropped_tail(stage: ResolvedStage) -> Iterator[str]:
    names = [term.name for term in stage.composition.terms if isinstance(term.objective, ForwardKL) and getattr(term.support, "tail", "") == "drop"]
    if names:
        yield f"terms {names} are a forward KL without its tail, which also draws the policy's mass onto the support; bucket does not"


def _extrapolated_sums(stage: ResolvedStage) -> Iterator[str]:
    """A mix's normaliser is a constant of the position only: summed over later tokens it is no baseline any more."""
    teacher = stage.composition.teacher
    mixes = [one for one in (single_teachers(teacher) if teacher is not None else ()) if isinstance(one, MixTeacher)]
    coupled = [
        term.name for term in stage.composition.terms if isinstance(term.objective, PolicyGradient) and term.objective.advantage.future_coupling > 0.0
    ]
    if coupled and any(one.weight not in (0.0, 1.0) for one in mixes):
        yield f"terms {coupled} sum a mixed teacher's log-ratios over later tokens; that is G-OPD's reward only with future_coupling 0"


def _contexts(stage: ResolvedStage) -> Iterator[str]:
    for part in stage.domains:
        context = stage.composition.context_of(part.name)
        if isinstance(context, SiblingSolution) and stage.rollouts_per_problem == 1:
            yield f"domain {part.name!r} shows siblings' solutions, but with one rollout per problem no rollout has a sibling"
        if isinstance(context, Demonstration) and part.domain.kind == "dataset" and part.domain.columns.solution is None:
            yield f"domain {part.name!r} names no column with solutions, so the bare answer is the demonstration"


def _masks(stage: ResolvedStage) -> Iterator[str]:
    for term in stage.composition.terms:
        if any(isinstance(mask, PrefixMask) and mask.start_tokens >= stage.sampling.max_tokens for mask in term.masks):
            yield f"term {term.name!r}: the prefix mask is as long as the longest completion and masks nothing"


def _own_tokens(stage: ResolvedStage) -> Iterator[str]:
    """Cross-entropy on samples of the policy itself has the score function as its gradient, whose mean is zero."""
    if stage.composition.experience.kind != "policy":
        return
    for term in stage.composition.terms:
        if isinstance(term.objective, CrossEntropy) and term.samples == "all" and not term.masks:
            yield f"term {term.name!r} is a cross-entropy on the policy's own tokens: its gradient is zero in expectation"
