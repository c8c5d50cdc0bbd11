"""Words that the policy writes for its own contexts: critiques and reasonings, one batched call for each.

Invariant: temperature 1 and the full vocabulary, and a seed that is a function of the job's seed, the stage, the step, what is
written and the rollout; a restarted step writes the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cluster.errors import StageError
from cluster.messages import Completion, GenerationRequest
from rollout.chat import ChatFormat
from rollout.context.thinking import spoken
from rollout.engines.base import EngineSampling
from rollout.seeds import sampling_seed

Generate = Callable[[Sequence[GenerationRequest], EngineSampling], list[tuple[Completion, ...]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the policy reads before it writes, and how much it may write."""

    rollout_id: str
    prompt_token_ids: np.ndarray
    max_tokens: int
    thinking: str


class PolicyWords:
    """The policy as a writer."""

    def __init__(self, chat: ChatFormat, generate: Generate, *, job_seed: int, stage_index: int):
        self._chat = chat
        self._generate = generate
        self._seed = (job_seed, stage_index)

    def write(self, what: str, step: int, asked: Sequence[Asked]) -> tuple[list[str], int]:
        """The text for each, in order, and the number of tokens written. All are sampled in one call to the longest limit and
        cut to their own, which changes nothing of what comes before. Raises ``StageError`` (``rollouts_missing``)."""
        if not asked:
            return [], 0
        requests = [
            GenerationRequest(
                prompt_token_ids=one.prompt_token_ids,
                num_completions=1,
                seed=sampling_seed(*self._seed, step, what, one.rollout_id, spacing=1),
            )
            for one in asked
        ]
        sampling = EngineSampling(temperature=1.0, top_p=1.0, max_tokens=max(one.max_tokens for one in asked))
        answers = self._generate(requests, sampling)
        if [len(completions) for completions in answers] != [1] * len(asked):
            raise StageError(
                f"step {step}: {len(asked)} texts of kind {what} were asked for, {sum(map(len, answers))} came",
                reason="rollouts_missing",
            )
        written = [answer[0].token_ids[: one.max_tokens] for answer, one in zip(answers, asked, strict=True)]
        texts = [spoken(self._chat.decode(ids).rstrip("\ufffd"), one.thinking) for ids, one in zip(written, asked, strict=True)]
        return texts, sum(map(len, written))
