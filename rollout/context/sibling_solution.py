"""A rollout of the same group that passed, shown to the teacher (SDPO, 2601.20802, Table 2 and section 3).

The sibling is the first rollout of the group, in order, whose score reaches the threshold and whose verifier did not
fail. A rollout is not shown its own success unless the spec says so: the only success of a group gets no solution.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import PrivilegedContext, RolloutGroup, Verdict
from cluster.spec.composition import SiblingSolution
from rollout.chat import ChatFormat
from rollout.context.base import Section, privileged_context
from rollout.context.feedback import feedback_sections
from rollout.context.templates import TEMPLATES


class SiblingSolutionContext:
    """A context for each rollout that has a sibling to learn from, or, where the spec says so, feedback."""

    def __init__(self, spec: SiblingSolution, chat: ChatFormat):
        self._spec = spec
        self._chat = chat
        self._template = TEMPLATES[spec.template]

    def build(self, group: RolloutGroup, verdicts: Sequence[Verdict]) -> list[PrivilegedContext | None]:
        threshold = self._spec.success_threshold
        successes = [
            index
            for index, (_, verdict) in enumerate(zip(group.rollouts, verdicts, strict=True))
            if verdict.error is None and verdict.score >= threshold
        ]
        return [
            privileged_context(
                group.problem,
                self._spec.kind,
                self._sections(group, index, verdict, successes),
                self._template,
                self._chat,
                self._spec.max_context_tokens,
            )
            for index, verdict in enumerate(verdicts)
        ]

    def _sections(self, group: RolloutGroup, index: int, verdict: Verdict, successes: list[int]) -> list[Section]:
        sibling = next((other for other in successes if self._spec.own_success or other != index), None)
        sections = [] if sibling is None else [(self._template.solution, group.rollouts[sibling].text)]
        if self._spec.feedback == "always" or (self._spec.feedback == "without_solution" and sibling is None):
            sections += feedback_sections(self._template, verdict)
        return sections
