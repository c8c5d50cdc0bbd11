"""The columns on which policy and teacher are compared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import Count, Spec


class SampledSupport(Spec):
    """The sampled token alone."""

    kind: Literal["sampled"] = "sampled"


class TopKSupport(Spec):
    """The K most likely ids of one of three distributions."""

    kind: Literal["top_k"] = "top_k"
    k: Count = 20
    support_from: Literal["rollout", "policy", "teacher"] = Field(
        "rollout", description="whose top-K: recorded by the engine when sampling, of the learner's current forward, or the teacher's"
    )
    join_sampled: bool = Field(False, description="add the sampled token where it is not among the K")
    tail: Literal["bucket", "renormalise", "drop", "sampled_correction"] = Field(
        "bucket",
        description="the rest as one event log(1 - sum p) (SDPO eq. 11); renormalised within the K (2603.25562 eq. 6); left out; "
        "or corrected by the sampled token where it lies outside (EMA-PG)",
    )


class FullSupport(Spec):
    """The whole vocabulary, exactly; the teacher sends hidden states or logits, whichever is less."""

    kind: Literal["full"] = "full"


SupportSpec = Annotated[SampledSupport | TopKSupport | FullSupport, Field(discriminator="kind")]
