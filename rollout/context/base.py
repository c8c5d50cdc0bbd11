"""Teacher prompts: the problem's own messages, with sections of privileged context and an instruction added to the last.

Invariant: the token budget cuts the text of a section, never the problem, the instruction or the assistant header.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cluster.messages import PrivilegedContext, Problem, RolloutGroup, Verdict
from rollout.chat import ChatFormat
from rollout.context.templates import ContextTemplate

Section = tuple[str, str]
"""A section's template with ``{text}``, and its text."""


class ContextBuilder(Protocol):
    """Built once for a stage from its spec and the model's chat format."""

    def build(self, group: RolloutGroup, verdicts: Sequence[Verdict]) -> list[PrivilegedContext | None]:
        """One context per rollout of the group, in order; None where there is nothing to say."""
        ...


def privileged_context(
    problem: Problem, kind: str, sections: Sequence[Section], template: ContextTemplate, chat: ChatFormat, max_context_tokens: int
) -> PrivilegedContext | None:
    """The context that the sections make, or None where nothing of them is left after the cut."""
    rendered, truncated = render_sections(sections, chat, max_context_tokens)
    if not rendered:
        return None
    return PrivilegedContext(
        problem_id=problem.problem_id,
        kind=kind,
        teacher_prompt_token_ids=teacher_prompt(problem, rendered, template, chat),
        truncated_tokens=truncated,
    )


def render_sections(sections: Sequence[Section], chat: ChatFormat, max_context_tokens: int) -> tuple[str, int]:
    """All sections as one text, and the number of tokens cut away. Earlier sections get the budget first; one without
    words left is dropped with its heading."""
    budget, truncated, rendered = max_context_tokens, 0, ""
    for section, text in sections:
        kept, cut = chat.head(chat.without_special_tokens(text), budget)
        truncated += cut
        if kept.strip():
            budget -= len(chat.text_token_ids(kept))
            rendered += section.replace("{text}", kept)
    return rendered, truncated


def teacher_prompt(problem: Problem, rendered: str, template: ContextTemplate, chat: ChatFormat) -> np.ndarray:
    """int32 [P]: earlier messages, then one user message = the problem's own + rendered sections + instruction."""
    *earlier, last = problem.messages
    message = {"role": last["role"], "content": last["content"] + rendered + template.instruction}
    return chat.prompt_token_ids([*earlier, message])
