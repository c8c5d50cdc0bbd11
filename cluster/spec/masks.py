"""Supervision density: which tokens a term sees. Masks multiply; each reports the fraction that it kept.

The denominator of a term counts the tokens that are left, except where a mask says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import Count, Fraction, Spec
from cluster.spec.experience import PrefixSchedule


class RandomMask(Spec):
    """Each token is masked with probability ``ratio``, seeded by rollout and position (2607.01763, mask_ratio)."""

    kind: Literal["random"] = "random"
    ratio: Fraction = Field(description="share of tokens that is masked")
    denominator: Literal["kept", "all"] = Field(
        "kept", description="kept: the expected gradient stays, its variance grows; all: the signal itself gets thinner"
    )


class SkipFirstMask(Spec):
    """The first tokens of a completion are not learned from (SDFT, 2601.19897)."""

    kind: Literal["skip_first"] = "skip_first"
    tokens: Count


class PrefixMask(PrefixSchedule):
    """Only the first tokens of a completion are learned from, how many may grow over the stage."""

    kind: Literal["prefix"] = "prefix"


class SpecialTokensMask(Spec):
    """Tokens that a tokenizer calls special, and every piece of the given texts, are not learned from (2603.25562)."""

    kind: Literal["special_tokens"] = "special_tokens"
    texts: tuple[str, ...] = Field((), description="further texts whose token ids are masked, such as '<think>'")
    occurrences: Literal["first", "all"] = Field("all", description="of each id in a completion")


class EndOfSequenceMask(Spec):
    """The end-of-sequence token is not learned from."""

    kind: Literal["end_of_sequence"] = "end_of_sequence"


class PatternMask(Spec):
    """Tokens that touch a match of a pattern are not learned from: format such as ``\\boxed`` or tags."""

    kind: Literal["pattern"] = "pattern"
    pattern: str = Field(min_length=1, max_length=200, description="a regular expression over the completion's text")


class RegionMask(Spec):
    """Only the thinking, up to and with ``end``, or only what comes after it is learned from."""

    kind: Literal["region"] = "region"
    keep: Literal["thinking", "answer"]
    end: str = Field("</think>", min_length=1, description="what closes the thinking; without it all is answer")


class EntropyQuantileMask(Spec):
    """Only the share of a completion's tokens with the highest entropy is learned from."""

    kind: Literal["entropy_quantile"] = "entropy_quantile"
    of: Literal["policy", "teacher"]
    keep: float = Field(0.2, gt=0.0, le=1.0, description="share of each completion's tokens that is kept")


class EntropyThresholdMask(Spec):
    """Only tokens at which the teacher's or the policy's entropy is above a threshold (EOPD, 2603.07079)."""

    kind: Literal["entropy_threshold"] = "entropy_threshold"
    of: Literal["policy", "teacher"] = "teacher"
    above_nats: float = Field(0.8, ge=0.0)
    denominator: Literal["kept", "all"] = Field(
        "kept", description="all: a gate on the summand of each token, as in EOPD; kept: the mean over the tokens that pass"
    )


class TruncatedMask(Spec):
    """Completions that reached the length limit are not learned from."""

    kind: Literal["truncated"] = "truncated"


MaskSpec = Annotated[
    RandomMask
    | SkipFirstMask
    | PrefixMask
    | SpecialTokensMask
    | EndOfSequenceMask
    | PatternMask
    | RegionMask
    | EntropyQuantileMask
    | EntropyThresholdMask
    | TruncatedMask,
    Field(discriminator="kind"),
]
