"""A rollout of the same group that passed, shown to the teacher (SDPO, 2601.20802, Table 2 and section 3).

The sibling is the first rollout of the group, in order, whose score reaches the threshold; a rollout is not shown its own
success unless the spec says so, hence the only success of a group gets no solution itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import PrivilegedContext, RolloutGroup, Verdict
from cluster.spec.composition import SiblingSolution
from rollout.chat import ChatFormat
from rollout.context.base import teacher_prompt
from rollout.context.templates import TEMPLATES


class SiblingSolutionContext:
    def __init__(self, spec: SiblingSolution, chat: ChatFormat):
        self._spec = spec
        self._chat = chat
        self._template = TEMPLATES[spec.template]

    def build(self, group: RolloutGroup, verdicts: Sequence[Verdict]) -> list[PrivilegedContext | None]:
        successes = [
            index
            for index, verdict in enumerate(verdicts)
            if verdict.error is None and verdict.score >= self._spec.success_threshold
        ]
        return [self._for_rollout(group, index, verdict, successes) for index, verdict in enumerate(verdicts)]

    def _for_rollout(self, group: RolloutGroup, index: int, verdict: Verdict, successes: list[int]) -> PrivilegedContext | None:
        sibling = next((other for other in successes if self._spec.own_success or other != index), None)
        sections = [] if sibling is None else [(self._template.solution, group.rollouts[sibling].text)]
        if verdict.feedback and not verdict.passed and self._wants_feedback(sibling is not None):
            sections.append((self._template.feedback, verdict.feedback))
        if not any(text.strip() for _, text in sections):
            return None
        prompt, truncated = teacher_prompt(group.problem, sections, self._template, self._chat, self._spec.max_context_tokens)
        return PrivilegedContext(
            problem_id=group.problem.problem_id, kind=self._spec.kind, teacher_prompt_token_ids=prompt, truncated_tokens=truncated
        )

    def _wants_feedback(self, has_solution: bool) -> bool:
        return self._spec.feedback == "always" or (self._spec.feedback == "without_solution" and not has_solution)
