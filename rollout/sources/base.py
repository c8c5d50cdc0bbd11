"""What every kind of experience shares: the problems of a step, their prompts, their seeds, their groups.

Invariant: stateless. The problems of a step, their indices and their sampling seeds are functions of the job's seed, the
stage, the step and the round of refilling, so that a restarted stage sees exactly what it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from cluster.errors import StageError
from cluster.messages import Completion, GenerationRequest, Problem, Rollout, RolloutGroup, Verdict
from rollout.chat import ChatFormat
from rollout.domains.base import Domain
from rollout.engines.base import EngineSampling
from rollout.seeds import sampling_seed
from rollout.sources.mixture import Mixture

Generate = Callable[[Sequence[GenerationRequest], EngineSampling], list[tuple[Completion, ...]]]
Verify = Callable[[Sequence[RolloutGroup]], list[list[Verdict]]]
SLOTS_LOOKED_AT = 4
"""For each demonstration that is asked for: a mixture may have used up a small data set."""
REFILL_INDICES_FROM = 10**9
"""Problems that refill a step have indices from here on, so that no step's own problem is ever used up by an earlier step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepExperience:
    """What one step learns from."""

    groups: list[RolloutGroup]
    verdicts: list[list[Verdict]]
    """Per group one verdict per rollout."""
    metrics: dict[str, float] = field(default_factory=dict)


class Source(Protocol):
    def next_experience(self, step: int, policy_version: int) -> StepExperience:
        """Of step ``step`` of the stage, counted from 0; ``policy_version`` is the last publication."""
        ...


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
    verify: Verify
    record_to: Path | None = None
    """The folder that an experience with ``record`` writes to."""
    replay_from: Path | None = None
    """The folder that a replayed experience reads from."""
    mixture: Mixture = field(init=False)
    refills: Mixture = field(init=False)

    def __post_init__(self) -> None:
        weights = [weight for _, weight in self.domains]
        self.mixture, self.refills = Mixture(weights), Mixture(weights)
        for domain, _ in self.domains:
            if domain.size("train") == 0:
                raise StageError(f"domain {domain.name} has no training problem", reason="no_problems")

    def problems(self, step: int) -> list[Problem]:
        slots = self.mixture.slots(step * self.problems_per_step, self.problems_per_step)
        return [self.domains[which][0].problem("train", index) for which, index in slots]

    def refill_problems(self, refill: int, count: int) -> list[Problem]:
        """The first ``count`` problems of refill ``refill``, counted over all steps of the stage from 0."""
        slots = self.refills.slots(refill * self.problems_per_step, count)
        return [self.domains[which][0].problem("train", REFILL_INDICES_FROM + index) for which, index in slots]

    def prompt(self, problem: Problem) -> np.ndarray:
        """int32 [P]. Raises ``StageError`` ``prompt_too_long``: a cut prompt would be another problem."""
        ids = self.chat.prompt_token_ids(problem.messages)
        if len(ids) > self.max_prompt_tokens:
            raise StageError(
                f"the prompt of problem {problem.problem_id} has {len(ids)} tokens, "
                f"more than max_prompt_tokens = {self.max_prompt_tokens}",
                reason="prompt_too_long",
                details={
                    "problem_id": problem.problem_id,
                    "prompt_tokens": len(ids),
                    "max_prompt_tokens": self.max_prompt_tokens,
                },
            )
        return ids

    def demonstration(self, problem: Problem) -> Completion:
        """The problem's own solution. Nothing sampled it: log-probabilities are 0 and the policy version is 0. One longer than
        ``max_tokens`` is cut there, without an end of turn, like a sampled one."""
        ids = self.chat.completion_token_ids(problem.solution)
        kept = ids[: self.sampling.max_tokens]
        return Completion(
            token_ids=kept,
            logprobs=np.zeros(len(kept), dtype=np.float32),
            finish_reason="stop" if len(kept) == len(ids) else "length",
            policy_version=0,
        )

    def demonstrations(self, count: int) -> list[Completion]:
        """The solutions of the stage's first problems in the mixture's proportion, ``count`` at most; without problems that have none,
        and no row of a data set twice."""
        sizes = [domain.size("train") for domain, _ in self.domains]
        found: list[Completion] = []
        for which, index in self.mixture.slots(0, SLOTS_LOOKED_AT * count):
            if len(found) == count:
                break
            size = sizes[which]
            if size is None or index < size:  # behind the last row a data set begins again
                problem = self.domains[which][0].problem("train", index)
                found += [self.demonstration(problem)] if problem.solution else []
        return found

    def seed(self, step: int, slot: int) -> int:
        return sampling_seed(self.job_seed, self.stage_index, step, slot, spacing=self.rollouts_per_problem)

    def group(
        self, step: int, slot: int, problem: Problem, prompt: np.ndarray, completions: Sequence[Completion]
    ) -> RolloutGroup:
        """``slot`` counts the problems of a step, those of refills after its own."""
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
