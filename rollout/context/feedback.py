"""The verifier's words about the rollout's own failed attempt, and the attempt itself where the spec asks for it.

Showing the attempt pulls the teacher towards it and narrows the policy (SDPO, 2601.20802, Table 6); hence off by default.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import PrivilegedContext, Rollout, RolloutGroup, Verdict
from cluster.spec.composition import Feedback
from rollout.chat import ChatFormat
from rollout.context.base import Section, privileged_context
from rollout.context.templates import TEMPLATES, ContextTemplate


def feedback_sections(template: ContextTemplate, verdict: Verdict) -> list[Section]:
    """The feedback section, where the attempt failed and the verifier found words for it."""
    if verdict.passed or verdict.error is not None or not verdict.feedback.strip():
        return []
    return [(template.feedback, verdict.feedback)]


class FeedbackContext:
    """A context for each failed rollout that the verifier said something about."""

    def __init__(self, spec: Feedback, chat: ChatFormat):
        self._spec = spec
        self._chat = chat
        self._template = TEMPLATES[spec.template]

    def build(self, group: RolloutGroup, verdicts: Sequence[Verdict]) -> list[PrivilegedContext | None]:
        return [self._context(group, *pair) for pair in zip(group.rollouts, verdicts, strict=True)]

    def _context(self, group: RolloutGroup, rollout: Rollout, verdict: Verdict) -> PrivilegedContext | None:
        sections = feedback_sections(self._template, verdict)
        if sections and self._spec.show_attempt:
            sections.append((self._template.attempt, rollout.text))
        return privileged_context(
            group.problem, self._spec.kind, sections, self._template, self._chat, self._spec.max_context_tokens
        )
