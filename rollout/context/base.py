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


class ContextBuilder(Protocol):
    def build(self, group: RolloutGroup, verdicts: Sequence[Verdict]) -> list[PrivilegedContext | None]:
        """One context per rollout of the group; None where there is nothing to say."""
        ...


def teacher_prompt(
    problem: Problem, sections: Sequence[tuple[str, str]], template: ContextTemplate, chat: ChatFormat, max_context_tokens: int
) -> tuple[np.ndarray, int]:
    """The teacher's prompt ids and the number of context tokens cut away.

    ``sections`` are pairs of a section template with ``{text}`` and its text, in order; earlier ones get the budget first.
    """
    budget, truncated, rendered = max_context_tokens, 0, ""
    for section, text in sections:
        kept, cut = cut_to_tokens(text, budget, chat)
        budget -= len(chat.text_token_ids(kept))
        truncated += cut
        if kept:
            rendered += section.replace("{text}", kept)
    *earlier, last = problem.messages
    message = {"role": last["role"], "content": last["content"] + rendered + template.instruction}
    return chat.prompt_token_ids([*earlier, message]), truncated


def cut_to_tokens(text: str, budget: int, chat: ChatFormat) -> tuple[str, int]:
    """The longest head of ``text`` with at most ``budget`` tokens, and how many tokens were cut."""
    ids = chat.text_token_ids(text)
    if len(ids) <= budget:
        return text, 0
    return chat.decode(ids[: max(budget, 0)]), len(ids) - max(budget, 0)
