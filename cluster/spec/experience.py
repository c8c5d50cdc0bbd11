"""Where the completions of a step come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.spec.base import Count, Name, Spec


class DynamicSampling(Spec):
    """Groups whose scores are all equal are dropped and replaced by new problems' (DAPO, 2503.14476, eq. 11)."""

    max_refills: Count = Field(10, description="further rounds of sampling in one step; then the step goes on with the groups it has, counted")


class PrefixSchedule(Spec):
    """How many tokens of a completion count at a step of the stage: L = start + tokens_per_step * step (prefix OPD, 2602.15260)."""

    start_tokens: Count
    tokens_per_step: float = Field(0.0, ge=0.0, description="growth per step of the stage")

    def tokens_at(self, step: int, longest: int) -> int:
        """L at ``step``, counted from 0; at most ``longest``."""
        return min(self.start_tokens + int(self.tokens_per_step * step), longest)


class PolicyExperience(Spec):
    """Completions sampled from the policy itself, through the rollout workers."""

    kind: Literal["policy"] = "policy"
    dynamic_sampling: DynamicSampling | None = None
    prefix: PrefixSchedule | None = Field(None, description="generation stops at this length, which may grow over the stage")
    record: bool = Field(False, description="keep every rollout in the job's folder, so that another stage or job can replay them")


class DemonstrationExperience(Spec):
    """The domain's own solutions as completions (off-policy): supervised fine-tuning."""

    kind: Literal["demonstrations"] = "demonstrations"


class ReplayedExperience(Spec):
    """Rollouts that were recorded before, in their order: the same data under another update rule."""

    kind: Literal["replayed"] = "replayed"
    path: str | None = Field(None, description="a folder that a stage with experience.record wrote")
    stage: Name | None = Field(None, description="an earlier stage of this job that recorded its rollouts")

    @model_validator(mode="after")
    def _one_source(self) -> ReplayedExperience:
        if (self.path is None) == (self.stage is None):
            raise ValueError("replayed rollouts come from exactly one of path and stage")
        return self


ExperienceSpec = Annotated[PolicyExperience | DemonstrationExperience | ReplayedExperience, Field(discriminator="kind")]
