"""Teacher prompts of a problem alone, with its own solution or with given words of feedback.

What a base model is trained on and measured by: a model that does not answer better with the solution in its prompt
cannot teach itself.
"""

from __future__ import annotations

import numpy as np

from cluster.messages import Problem
from rollout.chat import ChatFormat
from rollout.context.templates import TEMPLATES
from rollout.context.words import Part, fit, laid_out, prompt_with

DEFAULT_TEMPLATE = TEMPLATES["holdfast-1"]


def solution_prompt(problem: Problem, chat: ChatFormat, max_context_tokens: int = 512) -> np.ndarray:
    """int32 [P]: the teacher's prompt with the problem's own solution as the solution section."""
    return _prompt(problem, ("solution", problem.solution), chat, max_context_tokens)


def feedback_prompt(problem: Problem, feedback: str, chat: ChatFormat, max_context_tokens: int = 512) -> np.ndarray:
    """int32 [P]: the teacher's prompt with ``feedback`` as the feedback section."""
    return _prompt(problem, ("feedback", feedback), chat, max_context_tokens)


def _prompt(problem: Problem, part: Part, chat: ChatFormat, max_context_tokens: int) -> np.ndarray:
    parts, _ = fit([part], chat, max_context_tokens)
    return prompt_with(problem, laid_out(problem, parts, DEFAULT_TEMPLATE, DEFAULT_TEMPLATE.instruction), chat)
