"""Privileged context: what the teacher reads and the policy does not."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import Count, Fraction, Spec

TEMPLATE_VARIABLES = ("problem", "solution", "feedback", "attempt", "critique", "reasoning")
MAX_TEMPLATE_CHARACTERS = 8000
TEMPLATE_TOKENS = 128
"""Room for a named template's own words around a context, generously."""


class UserTemplate(Spec):
    """A Jinja template of the teacher's last user message, rendered in a limited process of its own.

    Variables are ``TEMPLATE_VARIABLES``; one that has nothing to say is empty. ``problem`` must be used.
    """

    text: str = Field(min_length=1, max_length=MAX_TEMPLATE_CHARACTERS)


class NoContext(Spec):
    """The teacher reads what the policy reads."""

    kind: Literal["none"] = "none"


class ReasonFirst(Spec):
    """The policy first explains the context to itself; its words go before the instruction (OPSD, 2601.18734)."""

    max_tokens: Count = Field(256, description="longest explanation")


class WordsSpec(Spec):
    """What every context of words has."""

    template: Literal["holdfast-1", "holdfast-2"] | UserTemplate = Field("holdfast-1", description="a named text, or your own")
    max_context_tokens: Count = Field(512, description="the context is cut to this; the problem, the instruction and the header never are")
    thinking: Literal["strip", "keep"] = Field("strip", description="whether a shown solution or attempt keeps its <think> part")
    reason_first: ReasonFirst | None = None
    when_empty: Literal["mask", "plain_prompt"] = Field(
        "mask", description="a rollout without context has no target, or the teacher reads the plain prompt"
    )


class Demonstration(WordsSpec):
    """The problem's own solution (SDFT, 2601.19897; OPSD, 2601.18734)."""

    kind: Literal["demonstration"] = "demonstration"
    feedback: Literal["never", "always"] = "never"
    show_attempt: bool = Field(False, description="whether the rollout's own text is shown too")


class SiblingSolution(WordsSpec):
    """A rollout of the same group that passed (SDPO, 2601.20802, Table 2)."""

    kind: Literal["sibling_solution"] = "sibling_solution"
    choice: Literal["first", "random", "best"] = Field("first", description="which of several; best: highest score, then shortest")
    success_threshold: Fraction = Field(1.0, description="smallest score that counts as a solution")
    own_success: bool = Field(False, description="whether a rollout may be shown its own success")
    feedback: Literal["never", "without_solution", "always"] = Field(
        "never", description="whether the verifier's words are shown too"
    )
    show_attempt: bool = Field(False, description="whether the rollout's own text is shown too")


class Feedback(WordsSpec):
    """The verifier's words about the rollout's own failed attempt."""

    kind: Literal["feedback"] = "feedback"
    show_attempt: bool = Field(False, description="whether the rollout's own text is shown with the feedback")


class Critique(WordsSpec):
    """The policy's own words about its attempt, written with the verifier's verdict and, if wanted, the solution in view."""

    kind: Literal["critique"] = "critique"
    max_tokens: Count = Field(128, description="longest critique")
    show_solution: bool = Field(True, description="whether the critic may read the problem's own solution")
    show_attempt: bool = Field(False, description="whether the teacher reads the attempt beside the critique")


ContextSpec = Annotated[NoContext | Demonstration | SiblingSolution | Feedback | Critique, Field(discriminator="kind")]
