"""Recipes: named methods, each a function from a few parameters to a complete ``Composition``.

Defaults are the papers' settings; where paper and code differ, ``variant`` says which. ``holdfast validate --resolved``
prints what a recipe became. A new one is one function and one spec class here, one line in each of the two lists, one job
file, one test.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.spec.composition import Composition
from cluster.spec.recipes.distillation import (
    EopdRecipe,
    ExopdRecipe,
    OpdSampledRecipe,
    OpdTopkRecipe,
    PrefixOpdRecipe,
    TmOpdRecipe,
    eopd,
    exopd,
    opd_sampled,
    opd_topk,
    prefix_opd,
    tm_opd,
)
from cluster.spec.recipes.reinforcement import DapoRecipe, DrGrpoRecipe, GrpoRecipe, dapo, dr_grpo, grpo
from cluster.spec.recipes.self_distillation import (
    OpsdRecipe,
    SdftRecipe,
    SdpoGrpoRecipe,
    SdpoRecipe,
    StableSdpoRecipe,
    opsd,
    sdft,
    sdpo,
    sdpo_grpo,
    stable_sdpo,
)
from cluster.spec.recipes.written_out import CustomRecipe, SftRecipe, custom, sft

MethodSpec = Annotated[
    GrpoRecipe
    | DrGrpoRecipe
    | DapoRecipe
    | SdpoRecipe
    | SdftRecipe
    | OpsdRecipe
    | OpdSampledRecipe
    | OpdTopkRecipe
    | TmOpdRecipe
    | ExopdRecipe
    | EopdRecipe
    | PrefixOpdRecipe
    | StableSdpoRecipe
    | SdpoGrpoRecipe
    | SftRecipe
    | CustomRecipe,
    Field(discriminator="recipe"),
]

RECIPES = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "dapo": dapo,
    "sdpo": sdpo,
    "sdft": sdft,
    "opsd": opsd,
    "opd_sampled": opd_sampled,
    "opd_topk": opd_topk,
    "tm_opd": tm_opd,
    "exopd": exopd,
    "eopd": eopd,
    "prefix_opd": prefix_opd,
    "stable_sdpo": stable_sdpo,
    "sdpo_grpo": sdpo_grpo,
    "sft": sft,
    "custom": custom,
}


def resolve(method: MethodSpec) -> Composition:
    """The complete composition that a method in a job file stands for."""
    return RECIPES[method.recipe](method)
