"""The teacher prompt with the problem's own solution: what a base model is trained on, and measured by."""

from __future__ import annotations

import numpy as np

from cluster.messages import Problem
from rollout.chat import ChatFormat
from rollout.context.base import teacher_prompt
from rollout.context.templates import TEMPLATES

DEFAULT_TEMPLATE = TEMPLATES["holdfast-1"]


def solution_prompt(problem: Problem, chat: ChatFormat, max_context_tokens: int = 512) -> np.ndarray:
    """int32 [P]"""
    return teacher_prompt(problem, [(DEFAULT_TEMPLATE.solution, problem.solution)], DEFAULT_TEMPLATE, chat, max_context_tokens)[0]


def feedback_prompt(problem: Problem, feedback: str, chat: ChatFormat, max_context_tokens: int = 512) -> np.ndarray:
    """int32 [P]"""
    return teacher_prompt(problem, [(DEFAULT_TEMPLATE.feedback, feedback)], DEFAULT_TEMPLATE, chat, max_context_tokens)[0]
