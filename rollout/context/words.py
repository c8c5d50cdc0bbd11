"""What a kind of context has to say about one rollout, before it is cut to its budget and laid out.

Invariant: the budget cuts the words of a context, never the problem, an instruction or the assistant header.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.messages import Problem, RolloutGroup, Verdict
from rollout.chat import ChatFormat
from rollout.context.templates import ContextTemplate

Part = tuple[str, str]
"""A section's name (solution, feedback, attempt, critique, reasoning) and its words."""
WRITTEN = ("critique", "reasoning")
"""Sections that the policy wrote for this very context, within a limit of their own: they get the budget first."""
Draw = Callable[[str], int]
"""A number that is a function of the job's seed, the stage, the step and the rollout whose id is given."""


@dataclass(slots=True)
class Words:
    """Of one rollout. No part that says anything, and nothing for a critic to read: there is no context."""

    parts: list[Part] = field(default_factory=list)
    for_critic: list[Part] = field(default_factory=list)
    """What the policy reads to write a critique, which then becomes the first part."""


WordsOf = Callable[[Any, RolloutGroup, Sequence[Verdict], Draw], list[Words]]
"""(spec, group, its verdicts, draw) -> one ``Words`` per rollout of the group, in order."""


def fit(parts: Sequence[Part], chat: ChatFormat, max_tokens: int) -> tuple[list[Part], int]:
    """The parts cut to ``max_tokens`` together, and how many tokens were cut away. What the policy wrote gets the budget
    first, then part after part; one without words left is dropped. An attempt alone says nothing."""
    kept: dict[int, Part] = {}
    budget, truncated = max_tokens, 0
    for index in sorted(range(len(parts)), key=lambda index: parts[index][0] not in WRITTEN):
        section, text = parts[index]
        head, cut = chat.head(chat.without_special_tokens(text), budget)
        truncated += cut
        if head.strip():
            budget -= len(chat.text_token_ids(head))
            kept[index] = (section, head)
    if all(section == "attempt" for section, _ in kept.values()):
        return [], truncated
    return [kept[index] for index in sorted(kept)], truncated


def rendered(parts: Sequence[Part], template: ContextTemplate) -> str:
    """All sections as one text, each under its heading."""
    return "".join(getattr(template, section).replace("{text}", text) for section, text in parts)


def prompt_with(problem: Problem, content: str, chat: ChatFormat) -> np.ndarray:
    """int32 [P]: the problem's earlier messages as they are, then ``content`` in the place of the last one."""
    *earlier, last = problem.messages
    return chat.prompt_token_ids([*earlier, {"role": last["role"], "content": content}])


def laid_out(problem: Problem, parts: Sequence[Part], template: ContextTemplate, instruction: str) -> str:
    """The last user message: the problem's own words, the sections, the instruction."""
    return problem.messages[-1]["content"] + rendered(parts, template) + instruction
