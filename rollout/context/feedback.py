"""The verifier's words about the rollout's own failed attempt, and the attempt itself where the spec asks for it."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import PrivilegedContext, RolloutGroup, Verdict
from cluster.spec.composition import Feedback
from rollout.chat import ChatFormat
from rollout.context.base import teacher_prompt
from rollout.context.templates import TEMPLATES


class FeedbackContext:
    def __init__(self, spec: Feedback, chat: ChatFormat):
        self._spec = spec
        self._chat = chat
        self._template = TEMPLATES[spec.template]

    def build(self, group: RolloutGroup, verdicts: Sequence[Verdict]) -> list[PrivilegedContext | None]:
        return [self._for_rollout(group, index, verdict) for index, verdict in enumerate(verdicts)]

    def _for_rollout(self, group: RolloutGroup, index: int, verdict: Verdict) -> PrivilegedContext | None:
        if verdict.passed or verdict.error is not None or not verdict.feedback.strip():
            return None
        sections = [(self._template.feedback, verdict.feedback)]
        if self._spec.show_attempt:
            sections.append((self._template.attempt, group.rollouts[index].text))
        prompt, truncated = teacher_prompt(group.problem, sections, self._template, self._chat, self._spec.max_context_tokens)
        return PrivilegedContext(
            problem_id=group.problem.problem_id, kind=self._spec.kind, teacher_prompt_token_ids=prompt, truncated_tokens=truncated
        )
