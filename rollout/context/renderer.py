"""User templates rendered for a step: in one limited process that lives as long as the stage.

Invariant: a template costs at most its deadline and its memory, and never more of the prompt than the problem, the context's
budget and the template's own words.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import Problem
from cluster.spec.contexts import TEMPLATE_TOKENS, UserTemplate
from rollout.chat import ChatFormat
from rollout.context.words import Part
from rollout.processes.pool import LimitedPool

DEADLINE_S = 2.0
MEMORY_BYTES = 1 << 30
MAX_ANSWER_BYTES = 4 << 20


class TemplateRenderer:
    """Starts its process at the first use."""

    def __init__(self, chat: ChatFormat, *, deadline_s: float = DEADLINE_S, memory_bytes: int = MEMORY_BYTES):
        self._chat = chat
        self._deadline_s = deadline_s
        self._memory_bytes = memory_bytes
        self._pool: LimitedPool | None = None

    def render(self, jobs: Sequence[tuple[UserTemplate, Problem, Sequence[Part], int]]) -> list[tuple[str, str | None]]:
        """(text, None) or ("", what went wrong) for each (template, problem, parts already cut, budget they were cut to)."""
        if not jobs:
            return []
        if self._pool is None:
            self._pool = LimitedPool(
                "rollout.context.user_template",
                deadline_s=self._deadline_s,
                memory_bytes=self._memory_bytes,
                max_answer_bytes=MAX_ANSWER_BYTES,
            )
        answers = self._pool.run(
            [(template.text, {"problem": problem.messages[-1]["content"], **dict(parts)}) for template, problem, parts, _ in jobs]
        )
        return [self._checked(answer, *job) for answer, job in zip(answers, jobs, strict=True)]

    def _checked(
        self, answer: dict, template: UserTemplate, problem: Problem, parts: Sequence[Part], budget: int
    ) -> tuple[str, str | None]:
        """Where the problem holds no special token of its own, the text may hold none: pieces of context could make one."""
        if "text" not in answer:
            return "", str(answer.get("error", "gave no answer"))
        question, text = problem.messages[-1]["content"], answer["text"]
        if self._chat.without_special_tokens(question) == question:
            text = self._chat.without_special_tokens(text)
        if not text.strip():
            return "", "rendered no text"
        allowed = sum(len(self._chat.text_token_ids(words)) for words in (question, template.text)) + budget + TEMPLATE_TOKENS
        size = len(self._chat.text_token_ids(text))
        if size > allowed:
            return "", f"rendered {size} tokens; the problem, the context's {budget} and the template's own words make {allowed}"
        return text, None

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()
            self._pool = None
