"""Compositions that cannot learn, or would learn something else than they say: each with its reason and what is nearest.

Called by the spec's own validation, so that submission and ``holdfast validate`` refuse alike. What depends on a stage's
sampling or domains is in ``stage_refusals.py``; what depends on the model or the machine in ``services/jobs``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.spec.contexts import NoContext, UserTemplate
from cluster.spec.experience import DemonstrationExperience
from cluster.spec.objectives import CrossEntropy, EntropyBonus
from cluster.spec.teachers import (
    AnchorSource,
    EmaTeacher,
    ExternalTeacher,
    LiveTeacher,
    MixTeacher,
    PerDomainTeacher,
    PolicySource,
    RestartAndFreezeTeacher,
    TrustRegionTeacher,
    single_teachers,
)
from cluster.spec.term_refusals import term_refusals

if TYPE_CHECKING:
    from cluster.spec.composition import Composition

LIVE_WITHOUT_CONTEXT = (
    "a live teacher with no privileged context is the policy itself: the loss is identically zero; "
    "give a context, or use a frozen or ema teacher"
)


def refusals(composition: Composition) -> list[str]:
    """Every reason against a composition, in words; empty where there is none."""
    found = [reason for term in composition.terms for reason in term_refusals(term)]
    parts = (_names, _teacher, _targets, _mixes, _experience, _supports, _contexts)
    return [*found, *(reason for part in parts for reason in part(composition))]


def is_policy(teacher: object) -> bool:
    """Whether the teacher's weights are exactly the policy's at every step."""
    if isinstance(teacher, TrustRegionTeacher):
        return teacher.mix == 1.0
    if isinstance(teacher, MixTeacher):
        ends = {0.0: teacher.first, 1.0: teacher.second}
        return isinstance(ends.get(teacher.weight), PolicySource)
    if isinstance(teacher, RestartAndFreezeTeacher):
        return teacher.gamma == 1.0 and teacher.period == 1
    return isinstance(teacher, LiveTeacher) or (isinstance(teacher, EmaTeacher) and teacher.update_rate == 1.0)


# -- the parts of a composition against each other -------------------------------------------------------------------


def _names(composition: Composition) -> Iterator[str]:
    names = [term.name for term in composition.terms]
    if len(set(names)) != len(names):
        yield f"two terms have the same name: {names}; each term is recorded under its own"


def _teacher(composition: Composition) -> Iterator[str]:
    """What reads a teacher against whether there is one. A domain that no context reaches is looked at with the stage."""
    teaching = [term.name for term in composition.terms if term.needs_teacher or term.reads_entropy("teacher")]
    teacher, of_domains = composition.teacher, composition.domain_contexts
    if teacher is None:
        if teaching:
            yield f"terms {teaching} read a teacher, but teacher is not set; set one, or use a policy_gradient of the outcome alone"
        return
    if not teaching:
        yield "a teacher is set but no term distils from it; remove teacher and context, or add a term that reads it"
    if isinstance(teacher, PerDomainTeacher):
        plain = [one for name, one in teacher.teachers.items() if isinstance(composition.context_of(name), NoContext)]
    else:
        every = of_domains.values() if of_domains else (composition.context,)
        plain = [teacher] if any(isinstance(context, NoContext) for context in every) else []
    if any(is_policy(single) for single in plain):
        yield LIVE_WITHOUT_CONTEXT


def _targets(composition: Composition) -> Iterator[str]:
    """Terms that tell rollouts apart by whether the teacher has something to say about them."""
    if composition.teacher is None:
        if any(term.samples != "all" for term in composition.terms):
            yield "samples with_target and without_target tell rollouts apart by the teacher's target, but teacher is not set; use all"
        return
    contexts = (composition.context, *composition.domain_contexts.values())
    always = all(isinstance(context, NoContext) or context.when_empty == "plain_prompt" for context in contexts)
    unseen = [term.name for term in composition.terms if term.samples == "without_target"]
    if always and unseen:
        yield (
            f"terms {unseen} see rollouts without a target, but every rollout has one (no context, or when_empty plain_prompt); "
            "use a context with when_empty mask, or samples all"
        )


def _mixes(composition: Composition) -> Iterator[str]:
    for teacher in () if composition.teacher is None else single_teachers(composition.teacher):
        if not isinstance(teacher, MixTeacher):
            continue
        if teacher.first == teacher.second:
            yield f"mix: first and second are the same ({teacher.first.kind}); name two different sources"
        if teacher.weight > 1.0 and not isinstance(teacher.second, ExternalTeacher):
            yield (
                f"mix weight {teacher.weight:g} extrapolates beyond {teacher.second.kind}: between anchor and policy that amplifies the "
                "policy's own drift; use 0 to 1 there, or an external second"
            )
        if isinstance(teacher.first, PolicySource) and isinstance(teacher.second, AnchorSource):
            yield "mix: write anchor first and policy second, with weight the policy's exponent"


def _experience(composition: Composition) -> Iterator[str]:
    cut = getattr(composition.experience, "prefix", None) is not None
    names = [term.name for term in composition.terms if any(mask.kind == "truncated" for mask in term.masks)] if cut else []
    if names:
        yield (
            f"experience.prefix cuts completions, and the truncated mask of terms {names} drops those that were cut: nothing is left to learn "
            "from; remove the mask, or the prefix"
        )
    if not isinstance(composition.experience, DemonstrationExperience):
        return
    wrong = [term.name for term in composition.terms if not isinstance(term.objective, CrossEntropy | EntropyBonus)]
    if wrong:
        yield f"demonstrations carry no rollout log-probabilities: terms {wrong} cannot use them, only cross_entropy and entropy_bonus can"
    if composition.advantage.reference_penalty is not None or composition.advantage.overlong is not None:
        yield "demonstrations have no advantages: remove advantage.reference_penalty and advantage.overlong"


def _supports(composition: Composition) -> Iterator[str]:
    found = {(one.k, one.support_from, one.join_sampled) for one in (term.support for term in composition.terms) if one.kind == "top_k"}
    if len(found) > 1:
        words = [f"k {k} from {source}" + (" with the sampled token" if joined else "") for k, source, joined in sorted(found)]
        yield f"the terms of one stage share one top_k support (k, support_from, join_sampled), got {', '.join(words)}; tails may differ"


def _contexts(composition: Composition) -> Iterator[str]:
    for context in (composition.context, *composition.domain_contexts.values()):
        if isinstance(context, NoContext):
            continue
        if composition.teacher is None:
            yield f"a privileged context ({context.kind}) is set, but there is no teacher to read it; remove it, or set teacher"
        if isinstance(context.template, UserTemplate) and "problem" not in context.template.text:
            yield "template: the text does not use {{ problem }}, so the teacher would not know what is asked"
