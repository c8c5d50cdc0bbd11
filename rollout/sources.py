"""Where a step's groups come from, by kind of experience. Stateless: the data cursor is the step number.

Problem slots of a mixture are dealt by weight with the smallest error so far, so the domain of every slot, and how many
slots that domain had before, are functions of the slot's number alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.errors import StageError
from cluster.messages import Completion, GenerationRequest, Problem, Rollout, RolloutGroup
from rollout.chat import ChatFormat
from rollout.domains.base import Domain
from rollout.engines.base import EngineSampling

Generate = Callable[[Sequence[GenerationRequest], EngineSampling], list[tuple[Completion, ...]]]


class Mixture:
    """Which domain the n-th problem of a stage is from, and its index there."""

    def __init__(self, weights: Sequence[float]):
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self._dealt = [0] * len(weights)
        self._slots: list[tuple[int, int]] = []

    def slot(self, number: int) -> tuple[int, int]:
        while len(self._slots) <= number:
            dealt = len(self._slots) + 1
            which = max(range(len(self._shares)), key=lambda i: self._shares[i] * dealt - self._dealt[i])
            self._slots.append((which, self._dealt[which]))
            self._dealt[which] += 1
        return self._slots[number]


@dataclass(kw_only=True)
class SourceSettings:
    """What every source needs of the stage."""

    domains: Sequence[tuple[Domain, float]]
    chat: ChatFormat
    stage_index: int
    job_seed: int
    problems_per_step: int
    rollouts_per_problem: int
    sampling: EngineSampling
    max_prompt_tokens: int
    generate: Generate
    mixture: Mixture = field(init=False)

    def __post_init__(self) -> None:
        self.mixture = Mixture([weight for _, weight in self.domains])

    def problems(self, step: int) -> list[Problem]:
        first = step * self.problems_per_step
        chosen = []
        for number in range(first, first + self.problems_per_step):
            which, index = self.mixture.slot(number)
            chosen.append(self.domains[which][0].problem("train", index))
        return chosen

    def prompt(self, problem: Problem) -> np.ndarray:
        ids = self.chat.prompt_token_ids(problem.messages)
        if len(ids) > self.max_prompt_tokens:
            raise StageError(
                f"the prompt of {problem.problem_id} has {len(ids)} tokens, max_prompt_tokens is {self.max_prompt_tokens}",
                reason="prompt_too_long",
            )
        return ids

    def rollout_id(self, step: int, slot: int, child: int) -> str:
        return f"{self.stage_index}/{step}/{slot}/{child}"


def sampling_seed(*parts: int, spacing: int) -> int:
    """A seed below 2**31 with room for ``spacing`` children, from the names of what is sampled."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (2**31 // spacing - 1) * spacing


class OnPolicySource:
    """Completions sampled by the rollout workers from the current policy."""

    def __init__(self, settings: SourceSettings):
        self._settings = settings

    def next_groups(self, step: int, policy_version: int) -> list[RolloutGroup]:
        """The groups of one step; ``policy_version`` is what the engines must hold."""
        given = self._settings
        problems = given.problems(step)
        requests = [
            GenerationRequest(
                prompt_token_ids=given.prompt(problem),
                num_completions=given.rollouts_per_problem,
                seed=sampling_seed(given.job_seed, given.stage_index, step, slot, spacing=given.rollouts_per_problem),
            )
            for slot, problem in enumerate(problems)
        ]
        answers = given.generate(requests, given.sampling)
        groups = [
            self._group(step, slot, problem, request, completions)
            for slot, (problem, request, completions) in enumerate(zip(problems, requests, answers, strict=True))
        ]
        versions = {rollout.completion.policy_version for group in groups for rollout in group.rollouts}
        if versions - {policy_version}:
            raise StageError(f"engines generated from publications {sorted(versions)}, {policy_version} was published", reason="stale_rollouts")
        return groups

    def _group(self, step: int, slot: int, problem: Problem, request: GenerationRequest, completions: tuple[Completion, ...]) -> RolloutGroup:
        rollouts = tuple(
            Rollout(
                rollout_id=self._settings.rollout_id(step, slot, child),
                problem_id=problem.problem_id,
                prompt_token_ids=request.prompt_token_ids,
                completion=completion,
                text=self._settings.chat.decode(completion.token_ids),
            )
            for child, completion in enumerate(completions)
        )
        return RolloutGroup(problem=problem, rollouts=rollouts)


class DemonstrationSource:
    """The problems' own solutions, one each, as if they had been sampled; they carry no log-probabilities."""

    def __init__(self, settings: SourceSettings):
        self._settings = settings

    def next_groups(self, step: int, policy_version: int) -> list[RolloutGroup]:
        return [self._group(step, slot, problem) for slot, problem in enumerate(self._settings.problems(step))]

    def _group(self, step: int, slot: int, problem: Problem) -> RolloutGroup:
        ids = self._settings.chat.completion_token_ids(problem.solution)
        completion = Completion(
            token_ids=ids, logprobs=np.zeros(len(ids), dtype=np.float32), finish_reason="stop", policy_version=0
        )
        rollout = Rollout(
            rollout_id=self._settings.rollout_id(step, slot, 0),
            problem_id=problem.problem_id,
            prompt_token_ids=self._settings.prompt(problem),
            completion=completion,
            text=problem.solution,
        )
        return RolloutGroup(problem=problem, rollouts=(rollout,))


SOURCES: dict[str, type] = {"policy": OnPolicySource, "demonstrations": DemonstrationSource}


def build_source(experience: Any, **settings: Any) -> OnPolicySource | DemonstrationSource:
    """The source of a stage's composition; ``settings`` are the fields of ``SourceSettings``."""
    return SOURCES[experience.kind](SourceSettings(**settings))
