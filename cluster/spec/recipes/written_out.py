"""Supervised fine-tuning, and a composition that the job file writes out itself."""

from __future__ import annotations

from typing import Literal

from cluster.spec.base import Spec
from cluster.spec.composition import Composition, Normaliser, Term
from cluster.spec.experience import DemonstrationExperience
from cluster.spec.objectives import CrossEntropy


class SftRecipe(Spec):
    """Supervised fine-tuning on the domain's solutions: the off-policy baseline."""

    recipe: Literal["sft"] = "sft"
    normaliser: Normaliser = "token_mean"


class CustomRecipe(Composition):
    """A composition written out in the job file."""

    recipe: Literal["custom"] = "custom"


def sft(recipe: SftRecipe) -> Composition:
    return Composition(
        experience=DemonstrationExperience(),
        terms=(Term(name="cross_entropy", objective=CrossEntropy(), normaliser=recipe.normaliser, importance_cap=None),),
    )


def custom(recipe: CustomRecipe) -> Composition:
    return Composition.model_validate(recipe.model_dump(exclude={"recipe"}))
