"""Terms that cannot learn by themselves, whatever stands beside them: objective, support, tail and masks of one term."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.spec.objectives import (
    CrossEntropy,
    EntropyBonus,
    JensenShannon,
    PolicyGradient,
    ReferenceKL,
    ReverseKL,
)
from cluster.spec.supports import SampledSupport, TopKSupport

if TYPE_CHECKING:
    from cluster.spec.composition import Term


def term_refusals(term: Term) -> Iterator[str]:
    """Every reason against a term, each with the term's name and what is nearest."""
    for part in (_objective, _coefficient, _support, _tail, _masks):
        for reason in part(term):
            yield f"term {term.name!r}: {reason}"


def _objective(term: Term) -> Iterator[str]:
    objective = term.objective
    if isinstance(objective, ReferenceKL) and objective.estimator == "k1":
        yield (
            "k1 as a loss has zero expected gradient; use k2 (gradient of the reverse KL) or k3 (of the forward KL), "
            "or k1 in the reward: advantage.reference_penalty"
        )
    if isinstance(objective, PolicyGradient):
        advantage = objective.advantage
        if advantage.outcome_weight == 0.0 == advantage.teacher_weight:
            yield "outcome_weight and teacher_weight are both 0, so every advantage is 0; set one of them"
        if objective.dual_clip is not None and objective.clip_high is None:
            yield "dual_clip bounds a clipped objective; give clip_low and clip_high too"
    if term.samples == "without_target" and term.needs_teacher:
        yield "it distils from a teacher, but samples is without_target; use with_target, or an objective without a teacher"
    if term.normaliser_tokens is not None and term.normaliser != "constant":
        yield f"normaliser_tokens goes with normaliser constant, not with {term.normaliser}"


def _coefficient(term: Term) -> Iterator[str]:
    if term.coefficient == 0.0:
        yield "coefficient 0 costs time and changes nothing; leave the term out"
    if term.coefficient < 0.0 and not isinstance(term.objective, EntropyBonus):
        yield f"coefficient {term.coefficient:g} turns {term.objective.kind} around, and its loss has no lower bound; it must be above 0"


def _support(term: Term) -> Iterator[str]:
    objective, support = term.objective, term.support
    if isinstance(support, SampledSupport):
        if isinstance(objective, JensenShannon):
            yield "jensen_shannon needs a top_k or full support; on the sampled token use reverse_kl or forward_kl"
        return
    if isinstance(objective, PolicyGradient) and objective.advantage.needs_teacher:
        yield (
            f"a {support.kind} divergence as an advantage is a constant of the position, its policy gradient is zero in expectation; "
            "use it as the objective itself (reverse_kl), or the sampled support for the advantage"
        )
    elif isinstance(objective, PolicyGradient | CrossEntropy | ReferenceKL | EntropyBonus):
        yield f"{objective.kind} does not compare with a teacher's support; support must be sampled, got {support.kind}"


def _tail(term: Term) -> Iterator[str]:
    support, objective = term.support, term.objective
    if not isinstance(support, TopKSupport):
        return
    if support.tail == "renormalise" and support.k == 1 and not support.join_sampled:
        yield (
            "a renormalised support of one id is the number 1 on both sides, the loss is always zero; "
            "use k of 2 or more, join_sampled, or tail bucket"
        )
    if support.tail == "drop" and isinstance(objective, ReverseKL):
        yield (
            "reverse_kl on a partial support whose tail is dropped is minimised by pushing the policy's mass off the support "
            "(policy = teacher is not a stationary point); use tail bucket, renormalise or sampled_correction"
        )
    if support.tail == "drop" and isinstance(objective, JensenShannon):
        yield "jensen_shannon on a support whose tail is dropped is not bounded below by 0; use tail bucket or renormalise"
    if support.tail == "sampled_correction" and not isinstance(objective, ReverseKL):
        yield (
            "sampled_correction estimates the tail of the reverse KL by the sampled token; "
            f"with {objective.kind} use tail bucket or renormalise"
        )
    if support.tail == "sampled_correction" and support.join_sampled:
        yield "sampled_correction already uses the sampled token outside the support; set join_sampled to false"


def _masks(term: Term) -> Iterator[str]:
    if any(mask.kind == "random" and mask.ratio == 1.0 for mask in term.masks):
        yield "a random mask of ratio 1 leaves no token; the ratio must be below 1"
    regions = {mask.keep for mask in term.masks if mask.kind == "region"}
    if regions == {"thinking", "answer"}:
        yield "a region mask that keeps the thinking and one that keeps the answer leave no token together; use one of them"
