"""The words around privileged context, as named and versioned texts. A version never changes once released.

The teacher's user message is the problem's own user message, then the sections that apply, then the instruction. Where the
policy itself writes (a critique, a reasoning), it reads sections in the same layout with another instruction at the end.
``holdfast-1`` is short on purpose: a character-level miniature reads it too. ``holdfast-2`` is for models that follow
instructions; all its words together stay below ``cluster.spec.contexts.TEMPLATE_TOKENS``.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.spec.contexts import UserTemplate


@dataclass(frozen=True, slots=True)
class ContextTemplate:
    """``{text}`` in each section is replaced by the context; the instructions are never cut."""

    solution: str
    feedback: str
    attempt: str
    critique: str
    reasoning: str
    instruction: str
    criticise: str
    """The instruction to write a critique of an attempt."""
    explain: str
    """The instruction to explain the context before it is used."""
    right: str
    """The verdict of an attempt that passed, before the verifier's words."""
    wrong: str


TEMPLATES = {
    "holdfast-1": ContextTemplate(
        solution="\nSolution: {text}",
        feedback="\nFeedback: {text}",
        attempt="\nAttempt: {text}",
        critique="\nCritique: {text}",
        reasoning="\nReasoning: {text}",
        instruction="\nAnswer now.",
        criticise="\nSay what is wrong.",
        explain="\nSay why.",
        right="right",
        wrong="wrong",
    ),
    "holdfast-2": ContextTemplate(
        solution="\n\nA solution that is known to be right:\n\n{text}",
        feedback="\n\nWhat the checker said of an attempt:\n\n{text}",
        attempt="\n\nAn attempt at this problem:\n\n{text}",
        critique="\n\nNotes on an attempt:\n\n{text}",
        reasoning="\n\nYour own explanation of what is given above:\n\n{text}",
        instruction=(
            "\n\nUse what is given above to find the way to the answer. Then write your complete response to the problem, in the "
            "form it asks for and as if the problem were all you had been given."
        ),
        criticise=(
            "\n\nDo not solve the problem again. In a few sentences, say what the attempt gets right, where its first mistake "
            "is, and what should be done there instead."
        ),
        explain="\n\nDo not answer yet. Explain to yourself, briefly, what is given above and why it is so.",
        right="The attempt is right.",
        wrong="The attempt is wrong.",
    ),
}
FOR_USER_TEMPLATES = TEMPLATES["holdfast-2"]
"""What the policy reads to write a critique or a reasoning where the teacher's template is the user's own."""


def words_around(template: str | UserTemplate) -> ContextTemplate:
    """The named words; with a user's own template those that the policy reads beside it."""
    return TEMPLATES[template] if isinstance(template, str) else FOR_USER_TEMPLATES
