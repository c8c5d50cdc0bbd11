"""Where a step's groups come from, by kind of experience.

Invariant: stateless. The problems of a step, their indices and their sampling seeds are functions of the job's seed, the
stage and the step, so that a restarted stage sees exactly what it would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from cluster.errors import StageError
from cluster.messages import Completion, GenerationRequest, Problem, Rollout, RolloutGroup
from rollout.chat import ChatFormat
from rollout.domains.base import Domain
from rollout.engines.base import EngineSampling

Generate = Callable[[Sequence[GenerationRequest], EngineSampling], list[tuple[Completion, ...]]]
SEED_RANGE = 2**31


class Source(Protocol):
    def next_groups(self, step: int, policy_version: int) -> list[RolloutGroup]:
        """The groups of step ``step`` of the stage, counted from 0; ``policy_version`` is the last publication."""
        ...


class Mixture:
    """Deals the problem slots of a stage to its domains: every slot goes to the domain that is furthest behind its share.

    No domain is ever a whole slot ahead of its exact share, and the indices of a domain are dealt without a gap.
    Scans forward from where it was last; a slot before that starts the scan anew.
    """

    def __init__(self, weights: Sequence[float]):
        total = sum(weights)
        self._shares = [weight / total for weight in weights]
        self._restart()

    def _restart(self) -> None:
        self._next = 0
        self._dealt = [0] * len(self._shares)

    def slots(self, first: int, count: int) -> list[tuple[int, int]]:
        """(domain, index within the domain) of slots ``first`` to ``first + count - 1``."""
        if first < self._next:
            self._restart()
        while self._next < first:
            self._deal()
        return [self._deal() for _ in range(count)]

    def _deal(self) -> tuple[int, int]:
        self._next += 1
        behind = [share * self._next - dealt for share, dealt in zip(self._shares, self._dealt, strict=True)]
        which = behind.index(max(behind))
        self._dealt[which] += 1
        return which, self._dealt[which] - 1


def sampling_seed(*parts: int, spacing: int) -> int:
    """A seed below 2**31 with room for ``spacing`` children, from the numbers of what is sampled."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % (SEED_RANGE // spacing) * spacing


@dataclass(kw_only=True)
class StageProblems:
    """The fields of a stage that every source needs, and the problems and prompts that follow from them."""

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
        for domain, _ in self.domains:
            if domain.size("train") == 0:
                raise StageError(f"domain {domain.name} has no training problem", reason="no_problems")

    def problems(self, step: int) -> list[Problem]:
        slots = self.mixture.slots(step * self.problems_per_step, self.problems_per_step)
        return [self.domains[which][0].problem("train", index) for which, index in slots]

    def prompt(self, problem: Problem) -> np.ndarray:
        """int32 [P]. Raises ``StageError`` ``prompt_too_long``: a cut prompt would be another problem."""
        ids = self.chat.prompt_token_ids(problem.messages)
        if len(ids) > self.max_prompt_tokens:
            raise StageError(
                f"the prompt of problem {problem.problem_id} has {len(ids)} tokens, "
                f"more than max_prompt_tokens = {self.max_prompt_tokens}",
                reason="prompt_too_long",
                details={"problem_id": problem.problem_id, "prompt_tokens": len(ids), "max_prompt_tokens": self.max_prompt_tokens},
            )
        return ids

    def seed(self, step: int, slot: int) -> int:
        return sampling_seed(self.job_seed, self.stage_index, step, slot, spacing=self.rollouts_per_problem)

    def group(self, step: int, slot: int, problem: Problem, prompt: np.ndarray, completions: Sequence[Completion]) -> RolloutGroup:
        rollouts = tuple(
            Rollout(
                rollout_id=f"{self.stage_index}/{step}/{slot}/{child}",
                problem_id=problem.problem_id,
                prompt_token_ids=prompt,
                completion=completion,
                text=self.chat.decode(completion.token_ids),
            )
            for child, completion in enumerate(completions)
        )
        return RolloutGroup(problem=problem, rollouts=rollouts)


class OnPolicySource:
    """Completions that the rollout workers sample from the current policy."""

    def __init__(self, stage: StageProblems):
        self._stage = stage

    def next_groups(self, step: int, policy_version: int) -> list[RolloutGroup]:
        """See ``Source``. Raises ``StageError``: ``stale_rollouts`` where an engine held another publication,
        ``rollouts_missing`` where the answer is not the completions that were asked for."""
        stage = self._stage
        problems = stage.problems(step)
        requests = [
            GenerationRequest(
                prompt_token_ids=stage.prompt(problem), num_completions=stage.rollouts_per_problem, seed=stage.seed(step, slot)
            )
            for slot, problem in enumerate(problems)
        ]
        answers = stage.generate(requests, stage.sampling)
        self._check(step, answers, policy_version)
        return [
            stage.group(step, slot, problem, request.prompt_token_ids, completions)
            for slot, (problem, request, completions) in enumerate(zip(problems, requests, answers, strict=True))
        ]

    def _check(self, step: int, answers: list[tuple[Completion, ...]], policy_version: int) -> None:
        wanted = [self._stage.rollouts_per_problem] * self._stage.problems_per_step
        if [len(completions) for completions in answers] != wanted:
            raise StageError(
                f"step {step}: {wanted[0]} completions of each of {len(wanted)} problems were asked for, "
                f"{sum(map(len, answers))} of {len(answers)} came",
                reason="rollouts_missing",
            )
        versions = {completion.policy_version for completions in answers for completion in completions}
        if versions != {policy_version}:
            raise StageError(
                f"step {step}: engines sampled from publications {sorted(versions)}, the last one is {policy_version}",
                reason="stale_rollouts",
            )


class DemonstrationSource:
    """The problems' own solutions, one each, in the place of rollouts. Nothing sampled them: log-probabilities are 0 and
    the policy version is 0. One longer than ``max_tokens`` is cut there, without an end of turn, like a sampled one."""

    def __init__(self, stage: StageProblems):
        self._stage = stage

    def next_groups(self, step: int, policy_version: int) -> list[RolloutGroup]:
        """See ``Source``."""
        stage = self._stage
        return [
            stage.group(step, slot, problem, stage.prompt(problem), [self._demonstration(problem)])
            for slot, problem in enumerate(stage.problems(step))
        ]

    def _demonstration(self, problem: Problem) -> Completion:
        ids = self._stage.chat.completion_token_ids(problem.solution)
        kept = ids[: self._stage.sampling.max_tokens]
        return Completion(
            token_ids=kept,
            logprobs=np.zeros(len(kept), dtype=np.float32),
            finish_reason="stop" if len(kept) == len(ids) else "length",
            policy_version=0,
        )


SOURCES: dict[str, type] = {"policy": OnPolicySource, "demonstrations": DemonstrationSource}


def build_source(experience: Any, **stage: Any) -> Source:
    """The source that a composition's experience asks for; ``stage``: the fields of ``StageProblems``."""
    return SOURCES[experience.kind](StageProblems(**stage))
