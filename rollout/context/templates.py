"""The words around privileged context, as named and versioned texts. A version never changes once released.

The teacher's user message is the problem's own user message, then the sections that apply, then the instruction.
Short on purpose: a character-level miniature reads them too.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContextTemplate:
    """``{text}`` in each section is replaced by the context; the instruction is never cut."""

    solution: str
    feedback: str
    attempt: str
    instruction: str


TEMPLATES = {
    "holdfast-1": ContextTemplate(
        solution="\nSolution: {text}",
        feedback="\nFeedback: {text}",
        attempt="\nAttempt: {text}",
        instruction="\nAnswer now.",
    ),
}
