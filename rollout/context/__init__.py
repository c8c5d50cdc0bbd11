"""What the teacher may see, by kind of context. A new one is one file here, one spec class, one line, one test."""

from __future__ import annotations

from cluster.spec.composition import ContextSpec
from rollout.chat import ChatFormat
from rollout.context.base import ContextBuilder
from rollout.context.feedback import FeedbackContext
from rollout.context.none import PlainPrompt
from rollout.context.sibling_solution import SiblingSolutionContext

CONTEXTS: dict[str, type] = {"none": PlainPrompt, "sibling_solution": SiblingSolutionContext, "feedback": FeedbackContext}


def build_context(spec: ContextSpec, chat: ChatFormat) -> ContextBuilder:
    """The builder that a stage's context spec asks for."""
    return CONTEXTS[spec.kind](spec, chat)
