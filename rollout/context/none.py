"""No privileged context: the teacher reads what the policy reads."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import PrivilegedContext, RolloutGroup, Verdict
from cluster.spec.composition import NoContext
from rollout.chat import ChatFormat


class PlainPrompt:
    def __init__(self, spec: NoContext, chat: ChatFormat):
        self._chat = chat

    def build(self, group: RolloutGroup, verdicts: Sequence[Verdict]) -> list[PrivilegedContext | None]:
        context = PrivilegedContext(
            problem_id=group.problem.problem_id, kind="none", teacher_prompt_token_ids=self._chat.prompt_token_ids(group.problem.messages)
        )
        return [context] * len(group.rollouts)
