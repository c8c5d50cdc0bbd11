"""On-policy distillation from a teacher that reads what the policy reads: usually another checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.spec.base import Count, Fraction, Spec
from cluster.spec.composition import Composition, Term
from cluster.spec.experience import PolicyExperience, PrefixSchedule
from cluster.spec.masks import EntropyQuantileMask, EntropyThresholdMask, MaskSpec, SpecialTokensMask
from cluster.spec.objectives import AdvantageSpec, ForwardKL, PolicyGradient, ReverseKL, TokenAdvantage
from cluster.spec.supports import TopKSupport
from cluster.spec.teachers import AnchorSource, ExternalTeacher, MixSource, MixTeacher, TeacherSpec

SPECIAL_TEXTS = ("<", "think")
"""Whose tokens the released code masks beside the end of turn (2603.25562), which every tokenizer calls special."""


class OpdSampledRecipe(Spec):
    """Sampled-token on-policy distillation: A_t = log q - log p of the token (2603.25562, the baseline).

    With ``reward_weight`` the plain score is added, without baseline or scale, as in the released code.
    """

    recipe: Literal["opd_sampled"] = "opd_sampled"
    teacher: TeacherSpec
    future_coupling: Fraction = Field(0.0, description="gamma; above 0 the variance grows with the fourth power of the length at worst")
    reward_weight: float = Field(0.0, ge=0.0, description="of the plain score beside the teacher's advantage")
    log_ratio_clip: float | None = Field(None, gt=0.0)
    mask_special_tokens: bool = Field(False, description="first occurrence of special_texts' pieces and of special tokens in a completion")
    special_texts: tuple[str, ...] = SPECIAL_TEXTS
    importance_cap: float | None = Field(2.0, gt=0.0)


class OpdTopkRecipe(Spec):
    """Local support matching (2603.25562, eq. 6 to 8): reverse KL inside the teacher's top-K, both renormalised there.

    The paper samples with top_p 0.9 (set ``sampling.top_p``). Variant ``code`` holds log-ratios within 5, as the released code
    does. Its ``entropy_top_ratio`` of 0.2 is in no table of the paper, so ``top_entropy`` is off in both.
    """

    recipe: Literal["opd_topk"] = "opd_topk"
    variant: Literal["paper", "code"] = "paper"
    teacher: TeacherSpec
    k: int = Field(32, ge=2)
    support_from: Literal["teacher", "policy", "rollout"] = "teacher"
    join_sampled: bool = Field(False, description="the variants V2 and V3 of the paper's ablation")
    tail: Literal["renormalise", "sampled_correction", "bucket"] = Field("renormalise", description="sampled_correction: V4 and V5")
    mask_special_tokens: bool = Field(True, description="first occurrence of special_texts' pieces and of special tokens in a completion")
    special_texts: tuple[str, ...] = SPECIAL_TEXTS
    top_entropy: float | None = Field(None, gt=0.0, le=1.0, description="share of each completion's tokens kept, by the policy's entropy")


class TmOpdRecipe(Spec):
    """Thinking Machines' on-policy distillation: policy gradient with importance ratio to the sampler, no clip.

    With ``reward_weight`` the score less its group's mean is added, not scaled.
    """

    recipe: Literal["tm_opd"] = "tm_opd"
    teacher: TeacherSpec
    kl_coefficient: float = Field(1.0, gt=0.0)
    future_coupling: Fraction = Field(0.0, description="the discount of later tokens' log-ratios")
    reward_weight: float = Field(0.0, ge=0.0)


class ExopdRecipe(Spec):
    """Reward extrapolation (G-OPD, 2602.12125): A_t = (log p_ref - log p) + weight (log q - log p_ref), weight above 1.

    As a teacher q' ~ ref^(1 - weight) q^weight; its normaliser is a constant of the position, so the expected gradient is the
    same.
    """

    recipe: Literal["exopd"] = "exopd"
    teacher: ExternalTeacher
    reference: MixSource = AnchorSource()
    weight: float = Field(1.25, ge=0.0, le=4.0, description="lambda")
    importance_cap: float | None = Field(5.0, gt=0.0)


class EopdRecipe(Spec):
    """Entropy-aware OPD (2603.07079): sampled-token OPD, and top-K forward KL where the teacher is unsure.

    What the paper does with the tail of the top-K is not known to us; ``bucket`` is at rest where policy and teacher agree, which
    ``drop`` is not.
    """

    recipe: Literal["eopd"] = "eopd"
    teacher: TeacherSpec
    above_nats: float = Field(0.8, ge=0.0, description="tau: the teacher's entropy from which the forward KL is added")
    k: Count = 16
    tail: Literal["bucket", "renormalise", "drop"] = "bucket"
    forward_coefficient: float = Field(1.0, gt=0.0)
    clip: float = Field(0.2, gt=0.0, lt=1.0)
    importance_cap: float | None = Field(2.0, gt=0.0)


class PrefixOpdRecipe(Spec):
    """Prefix OPD (2602.15260): completions are cut at a length that grows, and distilled on what was generated."""

    recipe: Literal["prefix_opd"] = "prefix_opd"
    teacher: TeacherSpec
    start_tokens: Count = 256
    tokens_per_step: float = Field(16.0, ge=0.0)
    importance_cap: float | None = Field(2.0, gt=0.0)


def opd_sampled(recipe: OpdSampledRecipe) -> Composition:
    advantage = TokenAdvantage(
        outcome_weight=recipe.reward_weight,
        teacher_weight=1.0,
        future_coupling=recipe.future_coupling,
        log_ratio_clip=recipe.log_ratio_clip,
    )
    return Composition(
        teacher=recipe.teacher,
        advantage=AdvantageSpec(baseline="none", scale="none"),
        terms=(
            Term(
                name="distillation",
                objective=PolicyGradient(advantage=advantage),
                importance_cap=recipe.importance_cap,
                masks=_special_tokens(recipe.mask_special_tokens, recipe.special_texts),
            ),
        ),
    )


def opd_topk(recipe: OpdTopkRecipe) -> Composition:
    support = TopKSupport(k=recipe.k, support_from=recipe.support_from, join_sampled=recipe.join_sampled, tail=recipe.tail)
    masks = _special_tokens(recipe.mask_special_tokens, recipe.special_texts)
    if recipe.top_entropy is not None:
        masks = (*masks, EntropyQuantileMask(of="policy", keep=recipe.top_entropy))
    return Composition(
        teacher=recipe.teacher,
        terms=(
            Term(
                name="distillation",
                objective=ReverseKL(log_ratio_clip=5.0 if recipe.variant == "code" else None),
                support=support,
                importance_cap=None,
                masks=masks,
            ),
        ),
    )


def _special_tokens(wanted: bool, texts: tuple[str, ...]) -> tuple[MaskSpec, ...]:
    return (SpecialTokensMask(texts=texts, occurrences="first"),) if wanted else ()


def tm_opd(recipe: TmOpdRecipe) -> Composition:
    advantage = TokenAdvantage(
        outcome_weight=recipe.reward_weight, teacher_weight=recipe.kl_coefficient, future_coupling=recipe.future_coupling
    )
    return Composition(
        teacher=recipe.teacher,
        advantage=AdvantageSpec(scale="none"),
        terms=(
            Term(
                name="distillation",
                objective=PolicyGradient(clip_low=None, clip_high=None, advantage=advantage),
                importance_cap=None,
            ),
        ),
    )


def exopd(recipe: ExopdRecipe) -> Composition:
    advantage = TokenAdvantage(outcome_weight=0.0, teacher_weight=1.0)
    return Composition(
        teacher=MixTeacher(first=recipe.reference, second=recipe.teacher, weight=recipe.weight),
        terms=(Term(name="distillation", objective=PolicyGradient(advantage=advantage), importance_cap=recipe.importance_cap),),
    )


def eopd(recipe: EopdRecipe) -> Composition:
    advantage = TokenAdvantage(outcome_weight=0.0, teacher_weight=1.0)
    objective = PolicyGradient(clip_low=recipe.clip, clip_high=recipe.clip, advantage=advantage)
    return Composition(
        teacher=recipe.teacher,
        terms=(
            Term(name="distillation", objective=objective, importance_cap=recipe.importance_cap),
            Term(
                name="unsure",
                objective=ForwardKL(),
                coefficient=recipe.forward_coefficient,
                support=TopKSupport(k=recipe.k, support_from="teacher", tail=recipe.tail),
                importance_cap=recipe.importance_cap,
                masks=(EntropyThresholdMask(of="teacher", above_nats=recipe.above_nats, denominator="all"),),
            ),
        ),
    )


def prefix_opd(recipe: PrefixOpdRecipe) -> Composition:
    prefix = PrefixSchedule(start_tokens=recipe.start_tokens, tokens_per_step=recipe.tokens_per_step)
    advantage = TokenAdvantage(outcome_weight=0.0, teacher_weight=1.0)
    return Composition(
        experience=PolicyExperience(prefix=prefix),
        teacher=recipe.teacher,
        terms=(Term(name="distillation", objective=PolicyGradient(advantage=advantage), importance_cap=recipe.importance_cap),),
    )
