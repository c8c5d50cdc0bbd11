"""Recipes: named methods, each a function from a few parameters to a complete ``Composition``.

Defaults are the papers' settings; what a user sets is visibly the user's. ``holdfast validate --resolved`` prints what
a recipe became.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import Spec
from cluster.spec.composition import (
    AdvantageSpec,
    Composition,
    ContextSpec,
    CrossEntropy,
    DemonstrationExperience,
    EmaTeacher,
    ForwardKL,
    FullSupport,
    JensenShannon,
    PolicyGradient,
    ReverseKL,
    SiblingSolution,
    SupportSpec,
    TeacherSpec,
    Term,
)


class GrpoRecipe(Spec):
    """Group relative policy optimisation (2402.03300), without a reference penalty."""

    recipe: Literal["grpo"] = "grpo"
    clip_low: float = Field(0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(0.2, gt=0.0)
    scale: Literal["group_std", "none"] = "group_std"
    normaliser: Literal["token_mean", "sequence_mean"] = "sequence_mean"
    importance_cap: float | None = Field(2.0, gt=0.0)


class SdpoRecipe(Spec):
    """Self-distillation policy optimisation (2601.20802): the policy with a sibling's solution in context teaches itself."""

    recipe: Literal["sdpo"] = "sdpo"
    teacher: TeacherSpec = EmaTeacher()
    context: ContextSpec = SiblingSolution(feedback="without_solution")
    divergence: ForwardKL | ReverseKL | JensenShannon = Field(JensenShannon(), discriminator="kind")
    support: SupportSpec = FullSupport()
    normaliser: Literal["token_mean", "sequence_mean"] = "token_mean"
    importance_cap: float | None = Field(2.0, gt=0.0)


class SftRecipe(Spec):
    """Supervised fine-tuning on the domain's solutions: the off-policy baseline."""

    recipe: Literal["sft"] = "sft"
    normaliser: Literal["token_mean", "sequence_mean"] = "token_mean"


class CustomRecipe(Composition):
    """A composition written out in the job file."""

    recipe: Literal["custom"] = "custom"


MethodSpec = Annotated[GrpoRecipe | SdpoRecipe | SftRecipe | CustomRecipe, Field(discriminator="recipe")]


def grpo(recipe: GrpoRecipe) -> Composition:
    return Composition(
        advantage=AdvantageSpec(scale=recipe.scale),
        terms=(
            Term(
                name="policy_gradient",
                objective=PolicyGradient(clip_low=recipe.clip_low, clip_high=recipe.clip_high),
                normaliser=recipe.normaliser,
                importance_cap=recipe.importance_cap,
            ),
        ),
    )


def sdpo(recipe: SdpoRecipe) -> Composition:
    return Composition(
        teacher=recipe.teacher,
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


def sft(recipe: SftRecipe) -> Composition:
    return Composition(
        experience=DemonstrationExperience(),
        terms=(Term(name="cross_entropy", objective=CrossEntropy(), normaliser=recipe.normaliser, importance_cap=None),),
    )


def custom(recipe: CustomRecipe) -> Composition:
    return Composition.model_validate(recipe.model_dump(exclude={"recipe"}))


RECIPES = {"grpo": grpo, "sdpo": sdpo, "sft": sft, "custom": custom}


def resolve(method: MethodSpec) -> Composition:
    """The complete composition that a method in a job file stands for."""
    return RECIPES[method.recipe](method)
