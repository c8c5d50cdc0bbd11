"""The privileged contexts of a step, for all of its groups at once, so that what the policy writes is one batched call.

Invariant: one entry per rollout, in order; None where there is nothing to say and the spec masks it. A function of the
groups, their verdicts, the job's seed, the stage, the step and the policy's weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import StageError
from cluster.messages import PrivilegedContext, Problem, Rollout, RolloutGroup, Verdict
from cluster.spec.contexts import ContextSpec, Critique, NoContext, UserTemplate
from rollout.chat import ChatFormat
from rollout.context.critique import critique_words
from rollout.context.demonstration import demonstration_words
from rollout.context.feedback import feedback_words
from rollout.context.none import no_words
from rollout.context.policy_words import Asked, Generate, PolicyWords
from rollout.context.renderer import TemplateRenderer
from rollout.context.sibling_solution import sibling_words
from rollout.context.templates import words_around
from rollout.context.words import Part, Words, WordsOf, fit, laid_out, prompt_with
from rollout.seeds import sampling_seed

CONTEXTS: dict[str, WordsOf] = {
    "none": no_words,
    "demonstration": demonstration_words,
    "sibling_solution": sibling_words,
    "feedback": feedback_words,
    "critique": critique_words,
}
MAX_TEMPLATE_FAILURE_SHARE = 0.2


@dataclass(slots=True)
class _Slot:
    """One rollout's context as it grows."""

    spec: Any
    problem: Problem
    rollout: Rollout
    words: Words
    parts: list[Part] = field(default_factory=list)
    """What is left of the words within the budget."""
    truncated: int = 0
    content: str | None = None
    """The teacher's last message; None where there is none."""
    failure: str | None = None
    """What went wrong with the user's template."""


class StageContexts:
    """``composition.context_of`` says which spec a domain has. ``metrics`` are those of the last step built."""

    def __init__(self, composition: Any, chat: ChatFormat, generate: Generate, *, job_seed: int, stage_index: int):
        self._composition = composition
        self._chat = chat
        self._seed = (job_seed, stage_index)
        self._policy = PolicyWords(chat, generate, job_seed=job_seed, stage_index=stage_index)
        self._renderer = TemplateRenderer(chat)
        self.metrics: dict[str, float] = {}

    def build(
        self, groups: Sequence[RolloutGroup], verdicts: Sequence[Sequence[Verdict]], step: int
    ) -> list[list[PrivilegedContext | None]]:
        """Per group one context per rollout. Raises ``StageError``: ``template_failed`` where a user's template failed on
        more than a fifth, ``rollouts_missing`` where the policy did not write what was asked for."""
        by_group = [self._slots(group, of_group, step) for group, of_group in zip(groups, verdicts, strict=True)]
        slots = [slot for of_group in by_group for slot in of_group]
        critique_tokens = self._criticise(slots, step)
        for slot in slots:
            self._fit(slot)
        reasoning_tokens = self._reason(slots, step)
        self._lay_out(slots)
        contexts = [[self._context(slot) for slot in of_group] for of_group in by_group]
        self.metrics = _metrics(slots, contexts, critique_tokens, reasoning_tokens)
        return contexts

    def close(self) -> None:
        """End the process of user templates, if one was started."""
        self._renderer.close()

    def _slots(self, group: RolloutGroup, verdicts: Sequence[Verdict], step: int) -> list[_Slot]:
        spec: ContextSpec = self._composition.context_of(group.problem.domain)

        def draw(rollout_id: str) -> int:
            return sampling_seed(*self._seed, step, "sibling", rollout_id, spacing=1)

        words = CONTEXTS[spec.kind](spec, group, verdicts, draw)
        return [_Slot(spec, group.problem, rollout, of_one) for rollout, of_one in zip(group.rollouts, words, strict=True)]

    # -- what the policy writes --------------------------------------------------------------------------------------

    def _criticise(self, slots: Sequence[_Slot], step: int) -> int:
        """Critiques become the first part of their words; returns the tokens written."""
        waiting = [slot for slot in slots if slot.words.for_critic]
        asked = []
        for slot in waiting:
            parts, _ = fit(slot.words.for_critic, self._chat, slot.spec.max_context_tokens)
            parts.reverse()  # what matters most got the budget first, and is read last
            asked.append(self._asked(slot, parts, words_around(slot.spec.template).criticise, slot.spec.max_tokens))
        texts, tokens = self._policy.write("critique", step, asked)
        for slot, text in zip(waiting, texts, strict=True):
            slot.words.parts.insert(0, ("critique", text))
        return tokens

    def _reason(self, slots: Sequence[_Slot], step: int) -> int:
        """Reasonings become the last part of words that are not empty; returns the tokens written."""
        waiting = [slot for slot in slots if slot.parts and slot.spec.reason_first is not None]
        asked = [
            self._asked(slot, slot.parts, words_around(slot.spec.template).explain, slot.spec.reason_first.max_tokens)
            for slot in waiting
        ]
        texts, tokens = self._policy.write("reasoning", step, asked)
        for slot, text in zip(waiting, texts, strict=True):
            slot.words.parts.append(("reasoning", text))
            self._fit(slot)
        return tokens

    def _asked(self, slot: _Slot, parts: Sequence[Part], instruction: str, max_tokens: int) -> Asked:
        content = laid_out(slot.problem, parts, words_around(slot.spec.template), instruction)
        return Asked(
            rollout_id=slot.rollout.rollout_id,
            prompt_token_ids=prompt_with(slot.problem, content, self._chat),
            max_tokens=max_tokens,
            thinking=slot.spec.thinking,
        )

    # -- what the teacher reads --------------------------------------------------------------------------------------

    def _fit(self, slot: _Slot) -> None:
        if slot.words.parts:
            slot.parts, slot.truncated = fit(slot.words.parts, self._chat, slot.spec.max_context_tokens)

    def _lay_out(self, slots: Sequence[_Slot]) -> None:
        """The teacher's last message of every slot that has something to say."""
        own = [slot for slot in slots if slot.parts and isinstance(slot.spec.template, UserTemplate)]
        jobs = [(slot.spec.template, slot.problem, slot.parts, slot.spec.max_context_tokens) for slot in own]
        for slot, (text, failure) in zip(own, self._renderer.render(jobs), strict=True):
            slot.content, slot.failure = (text, None) if failure is None else (None, failure)
        failures = [slot.failure for slot in own if slot.failure is not None]
        if len(failures) > MAX_TEMPLATE_FAILURE_SHARE * len(own):
            raise StageError(
                f"the context's template failed on {len(failures)} of {len(own)} rollouts, more than "
                f"{MAX_TEMPLATE_FAILURE_SHARE:.0%}; the first time it {failures[0]}",
                reason="template_failed",
            )
        for slot in slots:
            if slot.parts and not isinstance(slot.spec.template, UserTemplate):
                template = words_around(slot.spec.template)
                slot.content = laid_out(slot.problem, slot.parts, template, template.instruction)

    def _context(self, slot: _Slot) -> PrivilegedContext | None:
        if slot.content is not None:
            return PrivilegedContext(
                problem_id=slot.problem.problem_id,
                kind=slot.spec.kind,
                teacher_prompt_token_ids=prompt_with(slot.problem, slot.content, self._chat),
                truncated_tokens=slot.truncated,
            )
        kind = _plain_kind(slot)
        if kind is None:
            return None
        return PrivilegedContext(
            problem_id=slot.problem.problem_id, kind=kind, teacher_prompt_token_ids=slot.rollout.prompt_token_ids
        )


def _plain_kind(slot: _Slot) -> str | None:
    """The kind under which a rollout without context gets the policy's own prompt ids; None where it gets no target."""
    if isinstance(slot.spec, NoContext):
        return slot.spec.kind
    return "plain_prompt" if slot.spec.when_empty == "plain_prompt" and slot.failure is None else None


def _metrics(
    slots: Sequence[_Slot], contexts: Sequence[Sequence[Any]], critique_tokens: int, reasoning_tokens: int
) -> dict[str, float]:
    flat = [context for of_group in contexts for context in of_group if context is not None]
    plain = sum(context.kind == "plain_prompt" for context in flat)
    metrics = {
        "teacher/context_share": (len(flat) - plain) / max(len(slots), 1),
        "teacher/plain_prompt_share": plain / max(len(slots), 1),
        "teacher/context_truncated_tokens": float(sum(context.truncated_tokens for context in flat)),
    }
    specs = [slot.spec for slot in slots if not isinstance(slot.spec, NoContext)]
    if any(isinstance(spec, Critique) for spec in specs):
        metrics["teacher/critique_tokens"] = float(critique_tokens)
    if any(spec.reason_first is not None for spec in specs):
        metrics["teacher/reasoning_tokens"] = float(reasoning_tokens)
    if any(isinstance(spec.template, UserTemplate) for spec in specs):
        metrics["teacher/template_failures"] = float(sum(slot.failure is not None for slot in slots))
    return metrics
