"""The policy with privileged context teaches itself: SDPO, its stable and hybrid forms, SDFT, OPSD."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.spec.base import Count, Fraction, Spec
from cluster.spec.composition import Composition, Normaliser, Term
from cluster.spec.contexts import ContextSpec, Demonstration, ReasonFirst, SiblingSolution
from cluster.spec.masks import EntropyQuantileMask, MaskSpec, RandomMask, SkipFirstMask, TruncatedMask
from cluster.spec.objectives import (
    AdvantageSpec,
    ForwardKL,
    JensenShannon,
    ObjectiveSpec,
    PolicyGradient,
    ReferenceKL,
    ReverseKL,
    TokenAdvantage,
)
from cluster.spec.supports import FullSupport, SampledSupport, SupportSpec, TopKSupport
from cluster.spec.teachers import EmaTeacher, FrozenTeacher, RestartAndFreezeTeacher, TeacherSpec

Divergence = ForwardKL | ReverseKL | JensenShannon


class SdpoRecipe(Spec):
    """Self-distillation policy optimisation (2601.20802): the policy with a sibling's solution in context teaches itself.

    Variants set what is left null. ``code``: a rollout is not shown its own success, a score of 0.5 is one, top-100 of the
    policy with a tail bucket, mean over sequences, samples without a target count. ``paper``: its own success is shown
    (Table 2), the mean is over taught tokens (eq. 12). ``holdfast``: as code, over the whole vocabulary, mean over taught
    tokens. With ``feedback`` paper and code take Table 12's column of rich feedback: reverse_kl, k 20, update rate 0.01.
    """

    recipe: Literal["sdpo"] = "sdpo"
    variant: Literal["holdfast", "paper", "code"] = "holdfast"
    feedback: bool | None = Field(None, description="whether the verifier's words are shown where there is no sibling's solution; true in variant holdfast")
    level: Literal["logit", "token", "sequence"] = Field("logit", description="density of the supervision (Fig. 10)")
    teacher: TeacherSpec | None = Field(None, description="ema with rate 0.05, or 0.01 with feedback in the variants paper and code")
    context: ContextSpec | None = None
    divergence: Divergence | None = Field(None, discriminator="kind")
    support: SupportSpec | None = None
    normaliser: Normaliser | None = Field(None, description="token_mean, or sequence_mean in variant code")
    importance_cap: float | None = Field(2.0, gt=0.0)
    mask_ratio: Fraction = Field(0.0, description="share of tokens that is masked at random (2607.01763)")
    mask_denominator: Literal["kept", "all"] = "kept"
    when_empty: Literal["mask", "plain_prompt", "policy_gradient"] = Field(
        "mask", description="what a rollout without context gets; policy_gradient: the outcome's advantage instead of a target"
    )
    reference_coefficient: float = Field(0.0, ge=0.0, description="of a KL to the reference, which is not the teacher")

    @model_validator(mode="after")
    def _one_place_for_when_empty(self) -> SdpoRecipe:
        if self.context is not None and self.when_empty == "plain_prompt":
            raise ValueError("when_empty plain_prompt beside a context that is written out: write when_empty into the context")
        return self


class StableSdpoRecipe(Spec):
    """SDPO with a teacher that is restarted and frozen in turns (StableSDPO, 2607.01763).

    The paper jumps once per stage: period = the stage's steps, and ``boundary: {teacher: keep}`` in the stages after it.
    """

    recipe: Literal["stable_sdpo"] = "stable_sdpo"
    period: Count = Field(50, description="steps between two restarts")
    gamma: float = Field(0.4, gt=0.0, le=1.0)
    context: ContextSpec = SiblingSolution(feedback="without_solution")
    divergence: Divergence = Field(JensenShannon(), discriminator="kind")
    support: SupportSpec = FullSupport()
    normaliser: Normaliser = "token_mean"
    importance_cap: float | None = Field(2.0, gt=0.0)


class SdpoGrpoRecipe(Spec):
    """SDPO and GRPO blended, weight lambda on GRPO (2601.20802, 0.9 there): at the advantage of the sampled token, or
    as two terms of the loss."""

    recipe: Literal["sdpo_grpo"] = "sdpo_grpo"
    blend: Literal["advantage", "loss"] = "advantage"
    grpo_weight: Fraction = Field(0.9, description="lambda")
    teacher: TeacherSpec = EmaTeacher()
    context: ContextSpec = SiblingSolution(feedback="without_solution")
    divergence: Divergence = Field(JensenShannon(), discriminator="kind", description="of blend loss")
    support: SupportSpec = Field(FullSupport(), description="of blend loss")
    scale: Literal["group_std", "batch_std", "none"] = "none"
    clip_low: float = Field(0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(0.28, gt=0.0)
    advantage_clip: float | None = Field(5.0, gt=0.0)
    importance_cap: float | None = Field(2.0, gt=0.0)


class SdftRecipe(Spec):
    """Self-distillation fine-tuning (2601.19897): the policy with a demonstration in context teaches itself, no reward.

    Variant ``code``: forward KL (also what the errata of the paper's repository say); ``paper``: reverse KL (eq. 1).
    """

    recipe: Literal["sdft"] = "sdft"
    variant: Literal["code", "paper"] = "code"
    teacher: TeacherSpec = EmaTeacher(update_rate=0.01, every="optimizer_step")
    context: ContextSpec = Demonstration()
    support: SupportSpec = FullSupport()
    skip_first_tokens: int = Field(3, ge=0, description="the opening of an answer echoes the demonstration")
    top_entropy: float | None = Field(None, gt=0.0, le=1.0, description="share of each completion's tokens kept, by the policy's entropy")
    mask_truncated: bool = False
    reference_coefficient: float = Field(0.0, ge=0.0, description="beta, of KL to the base model")
    importance_cap: float | None = Field(2.0, gt=0.0)


class OpsdRecipe(Spec):
    """On-policy self-distillation (2601.18734): the ground truth in context, frozen teacher, forward KL on the vocabulary.

    Variant ``code``: Jensen-Shannon 0.5 and no pointwise clip, as the released snapshot's defaults. The papers' rollouts:
    ``sampling: {temperature: 1.1, top_p: 0.95, top_k: 20}`` and one rollout per problem.
    """

    recipe: Literal["opsd"] = "opsd"
    variant: Literal["paper", "code"] = "paper"
    teacher: TeacherSpec = FrozenTeacher()
    reason_first_tokens: Count | None = Field(None, description="the policy first explains the solution to itself, this long")
    pointwise_clip: float | None = Field(
        None, ge=0.0, description="upper bound of every vocabulary entry's summand, 0 for none; where null 0.05, or none in variant code"
    )
    support: SupportSpec = FullSupport()
    importance_cap: float | None = None


def sdpo(recipe: SdpoRecipe) -> Composition:
    published = recipe.variant != "holdfast"
    feedback = recipe.feedback if recipe.feedback is not None else not published
    rich = feedback and published
    when_empty = "plain_prompt" if recipe.when_empty == "plain_prompt" else "mask"
    context = recipe.context or SiblingSolution(
        own_success=recipe.variant == "paper",
        success_threshold=0.5 if recipe.variant == "code" else 1.0,
        feedback="without_solution" if feedback else "never",
        when_empty=when_empty,
    )
    support = recipe.support or (TopKSupport(k=20 if rich else 100, support_from="policy") if published else FullSupport())
    divergence = recipe.divergence or (ReverseKL() if rich else JensenShannon())
    objective, support = _at_level(recipe.level, divergence, support)
    normaliser = recipe.normaliser or ("sequence_mean" if recipe.variant == "code" else "token_mean")
    masks: tuple[MaskSpec, ...] = ()
    if recipe.mask_ratio > 0.0:
        masks = (RandomMask(ratio=recipe.mask_ratio, denominator=recipe.mask_denominator),)
    falls_back = recipe.when_empty == "policy_gradient"
    terms = [
        Term(
            name="distillation",
            objective=objective,
            support=support,
            normaliser=normaliser,
            importance_cap=recipe.importance_cap,
            masks=masks,
            count_missing_targets=recipe.variant == "code" or falls_back,
        )
    ]
    if falls_back:  # both terms over all samples: the few without a target must not weigh as much as all the others
        fallback = Term(
            name="policy_gradient",
            objective=PolicyGradient(),
            normaliser=normaliser,
            importance_cap=recipe.importance_cap,
            samples="without_target",
            count_missing_targets=True,
        )
        terms.append(fallback)
    return Composition(
        teacher=recipe.teacher or EmaTeacher(update_rate=0.01 if rich else 0.05),
        context=context,
        terms=(*terms, *_reference(recipe.reference_coefficient, normaliser, recipe.importance_cap)),
    )


def _at_level(level: str, divergence: Divergence, support: SupportSpec) -> tuple[ObjectiveSpec, SupportSpec]:
    """Supervision per vocabulary entry, per sampled token, or one number per sequence."""
    if level == "logit":
        return divergence, support
    if level == "token":
        return ReverseKL(), SampledSupport()
    advantage = TokenAdvantage(outcome_weight=0.0, teacher_weight=1.0, level="sequence")
    return PolicyGradient(clip_low=None, clip_high=None, advantage=advantage), SampledSupport()


def _reference(coefficient: float, normaliser: Normaliser, importance_cap: float | None, **more: Any) -> tuple[Term, ...]:
    """A penalty to the reference, averaged and weighted as the term that it stands beside."""
    if coefficient == 0.0:
        return ()
    return (
        Term(
            name="reference_kl",
            objective=ReferenceKL(),
            coefficient=coefficient,
            normaliser=normaliser,
            importance_cap=importance_cap,
            **more,
        ),
    )


def stable_sdpo(recipe: StableSdpoRecipe) -> Composition:
    return Composition(
        teacher=RestartAndFreezeTeacher(period=recipe.period, gamma=recipe.gamma),
        context=recipe.context,
        terms=(
            Term(
                name="distillation",
                objective=recipe.divergence,
                support=recipe.support,
                normaliser=recipe.normaliser,
                importance_cap=recipe.importance_cap,
            ),
        ),
    )


def sdpo_grpo(recipe: SdpoGrpoRecipe) -> Composition:
    weight = recipe.grpo_weight
    bounds = {"clip_low": recipe.clip_low, "clip_high": recipe.clip_high}
    if recipe.blend == "advantage":
        advantage = TokenAdvantage(outcome_weight=weight, teacher_weight=1.0 - weight, clip=recipe.advantage_clip)
        terms = (
            Term(name="blend", objective=PolicyGradient(**bounds, advantage=advantage), importance_cap=recipe.importance_cap),
        )
    else:
        terms = (
            Term(name="policy_gradient", objective=PolicyGradient(**bounds), coefficient=weight, importance_cap=recipe.importance_cap),
            Term(
                name="distillation",
                objective=recipe.divergence,
                support=recipe.support,
                coefficient=1.0 - weight,
                importance_cap=recipe.importance_cap,
            ),
        )
    return Composition(teacher=recipe.teacher, context=recipe.context, advantage=AdvantageSpec(scale=recipe.scale), terms=terms)


def sdft(recipe: SdftRecipe) -> Composition:
    masks: list[MaskSpec] = [SkipFirstMask(tokens=recipe.skip_first_tokens)] if recipe.skip_first_tokens else []
    if recipe.top_entropy is not None:
        masks.append(EntropyQuantileMask(of="policy", keep=recipe.top_entropy))
    if recipe.mask_truncated:
        masks.append(TruncatedMask())
    return Composition(
        teacher=recipe.teacher,
        context=recipe.context,
        terms=(
            Term(
                name="distillation",
                objective=ForwardKL() if recipe.variant == "code" else ReverseKL(),
                support=recipe.support,
                normaliser="sequence_mean",
                importance_cap=recipe.importance_cap,
                importance_level="sequence_mean",
                masks=tuple(masks),
            ),
            *_reference(
                recipe.reference_coefficient,
                "sequence_mean",
                recipe.importance_cap,
                importance_level="sequence_mean",
                masks=tuple(masks),
            ),
        ),
    )


def opsd(recipe: OpsdRecipe) -> Composition:
    reason_first = None if recipe.reason_first_tokens is None else ReasonFirst(max_tokens=recipe.reason_first_tokens)
    divergence = ForwardKL if recipe.variant == "paper" else JensenShannon
    clip = recipe.pointwise_clip if recipe.pointwise_clip is not None else (0.05 if recipe.variant == "paper" else 0.0)
    return Composition(
        teacher=recipe.teacher,
        context=Demonstration(reason_first=reason_first),
        terms=(
            Term(
                name="distillation",
                objective=divergence(entry_clip=clip or None),
                support=recipe.support,
                normaliser="sequence_mean",
                importance_cap=recipe.importance_cap,
            ),
        ),
    )
