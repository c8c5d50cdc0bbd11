"""Methods that cannot learn under a stage's own sampling, budget or domains. Composition alone: ``refusals.py``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.spec.contexts import NoContext
from cluster.spec.objectives import PolicyGradient
from cluster.spec.refusals import LIVE_WITHOUT_CONTEXT, is_policy
from cluster.spec.teachers import PerDomainTeacher

if TYPE_CHECKING:
    from cluster.spec.job import ResolvedStage


def stage_refusals(stage: ResolvedStage) -> list[str]:
    """Every reason against a stage, in words; empty where there is none."""
    return [*_truncated_sampling(stage), *_rollout_support(stage), *_updates(stage), *_domains(stage)]


def _truncated_sampling(stage: ResolvedStage) -> Iterator[str]:
    """top_p and top_k: the engine's record is renormalised in the nucleus, so it is no probability of the policy."""
    composition, sampling = stage.composition, stage.sampling
    if not sampling.is_truncated or composition.experience.kind == "demonstrations":
        return
    words = f"top_p {sampling.top_p:g} / top_k {sampling.top_k}"
    corrected = [term.name for term in composition.terms if term.importance_cap is not None]
    if corrected:
        yield (
            f"terms {corrected} have an importance_cap, but {words} renormalise the rollout's probabilities inside the nucleus, so the "
            "ratio to the policy would be wrong; set importance_cap to null, or top_p 1 and no top_k"
        )
    if any(isinstance(term.objective, PolicyGradient) and term.objective.advantage.needs_teacher for term in composition.terms):
        yield (
            f"a teacher's advantage is log q - log p of the rollout, which {words} renormalise; "
            "use a top_k support with reverse_kl, or top_p 1 and no top_k"
        )
    gradients = [term.name for term in composition.terms if isinstance(term.objective, PolicyGradient)]
    if composition.experience.kind == "replayed" and gradients:
        yield (
            f"terms {gradients} learn from another policy's rollouts and need the ratio to its probabilities, which {words} renormalise; "
            "record with top_p 1 and no top_k, or use a divergence on a support"
        )
    if composition.advantage.reference_penalty is not None:
        yield (
            f"advantage.reference_penalty compares with the rollout's probabilities, which {words} renormalise; "
            "use a reference_kl term, or top_p 1 and no top_k"
        )


def _rollout_support(stage: ResolvedStage) -> Iterator[str]:
    wanted, sampling = stage.composition.rollout_support_k, stage.sampling
    if wanted and sampling.top_k is not None and wanted > sampling.top_k and stage.composition.experience.kind != "demonstrations":
        yield (
            f"a support of the rollout's {wanted} most likely ids, but sampling.top_k {sampling.top_k} leaves the engine that many with a "
            f"probability; use k of at most {sampling.top_k}, or support_from policy or teacher"
        )


def _updates(stage: ResolvedStage) -> Iterator[str]:
    per_problem = {"policy": stage.rollouts_per_problem, "demonstrations": 1}.get(stage.composition.experience.kind)
    if per_problem is None:
        return  # replayed: as many as were recorded
    completions = stage.problems_per_step * per_problem
    if stage.updates_per_batch > completions:
        yield f"updates_per_batch {stage.updates_per_batch} is more than the {completions} completions of a step; use at most {completions}"


def _domains(stage: ResolvedStage) -> Iterator[str]:
    composition = stage.composition
    teacher, names = composition.teacher, {part.name for part in stage.domains}
    per_domain = teacher.teachers if isinstance(teacher, PerDomainTeacher) else None
    if per_domain is not None and set(per_domain) != names:
        yield f"per_domain names teachers for {sorted(per_domain)}, the stage's domains are {sorted(names)}; name each of them once"
        return
    unknown = sorted(set(composition.domain_contexts) - names)
    if unknown:
        yield f"domain_contexts names {unknown}, the stage's domains are {sorted(names)}"
    for name in sorted(names) if teacher is not None else ():
        one = teacher if per_domain is None else per_domain[name]
        if is_policy(one) and isinstance(composition.context_of(name), NoContext):
            yield f"domain {name!r}: {LIVE_WITHOUT_CONTEXT}"
