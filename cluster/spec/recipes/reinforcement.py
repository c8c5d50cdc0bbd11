"""GRPO and its family: the outcome's advantage on the sampled tokens, no teacher."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cluster.spec.base import Count, Spec
from cluster.spec.composition import Composition, Normaliser, Term
from cluster.spec.experience import DynamicSampling, PolicyExperience
from cluster.spec.masks import TruncatedMask
from cluster.spec.objectives import AdvantageSpec, OverlongPenalty, PolicyGradient, ReferenceKL


class GrpoRecipe(Spec):
    """Group relative policy optimisation (2402.03300, eq. 3); the penalty to the reference is off unless asked for.

    Variant ``sdpo_code``: the baseline of SDPO's code and of 2607.01763: no scale, bounds 0.2 and 0.28, dual clip 3, mean over
    tokens. What is set beside a variant wins.
    """

    recipe: Literal["grpo"] = "grpo"
    variant: Literal["paper", "sdpo_code"] = "paper"
    clip_low: float = Field(0.2, gt=0.0, lt=1.0)
    clip_high: float | None = Field(None, gt=0.0, description="0.2, or 0.28 with sdpo_code")
    dual_clip: float | None = Field(None, gt=1.0, description="none, or 3 with sdpo_code")
    scale: Literal["group_std", "batch_std", "none"] | None = Field(None, description="group_std, or none with sdpo_code")
    baseline: Literal["group_mean", "leave_one_out"] = "group_mean"
    normaliser: Normaliser | None = Field(None, description="sequence_mean, or token_mean with sdpo_code")
    importance_cap: float | None = Field(2.0, gt=0.0)
    reference_coefficient: float = Field(0.0, ge=0.0, description="of KL to the reference; 0.04 in DeepSeekMath, 0.001 in verl")
    reference_estimator: Literal["k1", "k2", "k3"] = "k3"


class DrGrpoRecipe(Spec):
    """Dr. GRPO (2503.20783): no scale, token sums over a constant, so that no length is favoured."""

    recipe: Literal["dr_grpo"] = "dr_grpo"
    clip_low: float = Field(0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(0.2, gt=0.0)
    normaliser_tokens: Count | None = Field(None, description="the constant; the stage's max_tokens where null")
    importance_cap: float | None = Field(2.0, gt=0.0)


class DapoRecipe(Spec):
    """DAPO (2503.14476): two clips, mean over tokens, equal groups sampled anew, long completions penalised."""

    recipe: Literal["dapo"] = "dapo"
    clip_low: float = Field(0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(0.28, gt=0.0)
    max_refills: Count = 10
    overlong_buffer_tokens: Count | None = Field(4096, description="null: no shaping")
    overlong_penalty: float = Field(1.0, gt=0.0)
    mask_truncated: bool = Field(False, description="overlong filtering: truncated completions are not learned from")
    importance_cap: float | None = Field(2.0, gt=0.0)


def grpo(recipe: GrpoRecipe) -> Composition:
    of_code = recipe.variant == "sdpo_code"
    terms = [
        Term(
            name="policy_gradient",
            objective=PolicyGradient(
                clip_low=recipe.clip_low,
                clip_high=_given(recipe.clip_high, 0.28 if of_code else 0.2),
                dual_clip=_given(recipe.dual_clip, 3.0 if of_code else None),
            ),
            normaliser=_given(recipe.normaliser, "token_mean" if of_code else "sequence_mean"),
            importance_cap=recipe.importance_cap,
        )
    ]
    if recipe.reference_coefficient > 0.0:
        terms.append(
            Term(
                name="reference_kl",
                objective=ReferenceKL(estimator=recipe.reference_estimator),
                coefficient=recipe.reference_coefficient,
                normaliser=terms[0].normaliser,
                importance_cap=recipe.importance_cap,
            )
        )
    return Composition(
        advantage=AdvantageSpec(baseline=recipe.baseline, scale=_given(recipe.scale, "none" if of_code else "group_std")),
        terms=tuple(terms),
    )


def dr_grpo(recipe: DrGrpoRecipe) -> Composition:
    return Composition(
        advantage=AdvantageSpec(scale="none"),
        terms=(
            Term(
                name="policy_gradient",
                objective=PolicyGradient(clip_low=recipe.clip_low, clip_high=recipe.clip_high),
                normaliser="constant",
                normaliser_tokens=recipe.normaliser_tokens,
                importance_cap=recipe.importance_cap,
            ),
        ),
    )


def dapo(recipe: DapoRecipe) -> Composition:
    overlong = None
    if recipe.overlong_buffer_tokens is not None:
        overlong = OverlongPenalty(buffer_tokens=recipe.overlong_buffer_tokens, penalty=recipe.overlong_penalty)
    return Composition(
        experience=PolicyExperience(dynamic_sampling=DynamicSampling(max_refills=recipe.max_refills)),
        advantage=AdvantageSpec(overlong=overlong),
        terms=(
            Term(
                name="policy_gradient",
                objective=PolicyGradient(clip_low=recipe.clip_low, clip_high=recipe.clip_high),
                importance_cap=recipe.importance_cap,
                masks=(TruncatedMask(),) if recipe.mask_truncated else (),
            ),
        ),
    )


def _given(value, default):
    return default if value is None else value
