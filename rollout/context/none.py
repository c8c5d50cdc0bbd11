"""No privileged context: the teacher reads what the policy reads, to the token."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import PrivilegedContext, RolloutGroup, Verdict
from cluster.spec.composition import NoContext
from rollout.chat import ChatFormat


class PlainPrompt:
    """The policy's own prompt ids as the teacher's prompt, for every rollout."""

    def __init__(self, spec: NoContext, chat: ChatFormat):
        self._kind = spec.kind

    def build(self, group: RolloutGroup, verdicts: Sequence[Verdict]) -> list[PrivilegedContext | None]:
        return [
            PrivilegedContext(
                problem_id=group.problem.problem_id, kind=self._kind, teacher_prompt_token_ids=rollout.prompt_token_ids
            )
            for rollout in group.rollouts
        ]
