"""Rollouts that were recorded before, in their order: the same data under another update rule.

The problems are made again by their ids from the stage's domains and must give the very prompt that was sampled; ids and
log-probabilities are the file's, bit by bit; verdicts are given anew. A recording with refilled steps replays them as they
were kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.errors import StageError
from cluster.messages import Problem, Rollout, RolloutGroup
from rollout.sources.base import StageProblems, StepExperience
from rollout.sources.recording import RecordedGroup, read_step


class ReplayedSource:
    """See the module docstring."""

    def __init__(self, experience: Any, stage: StageProblems):
        if stage.replay_from is None:
            raise ValueError("experience.kind is replayed, but replay_from names no folder")
        if not stage.replay_from.is_dir():
            raise StageError(
                f"there are no recorded rollouts at {stage.replay_from}; a stage with experience.record writes them",
                reason="replay_missing",
            )
        self._folder = stage.replay_from
        self._stage = stage
        self._domains = {domain.name: domain for domain, _ in stage.domains}

    def next_experience(self, step: int, policy_version: int) -> StepExperience:
        """See ``Source``. Raises ``StageError``: what ``read_step`` raises, ``replay_problem_missing`` where a problem cannot be
        made again, ``replay_prompt_changed`` where it is another one now, ``replay_too_long`` above the stage's max_tokens."""
        groups = [self._group(recorded) for recorded in read_step(self._folder, step, self._stage.sampling)]
        return StepExperience(groups=groups, verdicts=self._stage.verify(groups))

    def _group(self, recorded: RecordedGroup) -> RolloutGroup:
        problem = self._problem(recorded.problem_id)
        if not np.array_equal(self._stage.prompt(problem), recorded.prompt_token_ids):
            raise StageError(
                f"the prompt of problem {problem.problem_id} is not the one that was recorded: the domain, its data, the job's seed "
                "or the tokenizer has changed",
                reason="replay_prompt_changed",
                details={"problem_id": problem.problem_id},
            )
        longest = max(len(completion.token_ids) for completion in recorded.completions)
        if longest > self._stage.sampling.max_tokens:
            raise StageError(
                f"a recorded completion of problem {problem.problem_id} has {longest} tokens, more than the stage's "
                f"max_tokens = {self._stage.sampling.max_tokens}",
                reason="replay_too_long",
            )
        rollouts = tuple(
            Rollout(
                rollout_id=rollout_id,
                problem_id=problem.problem_id,
                prompt_token_ids=recorded.prompt_token_ids,
                completion=completion,
                text=self._stage.chat.decode(completion.token_ids),
            )
            for rollout_id, completion in zip(recorded.rollout_ids, recorded.completions, strict=True)
        )
        return RolloutGroup(problem=problem, rollouts=rollouts)

    def _problem(self, problem_id: str) -> Problem:
        """The problem of ``<domain name>/train/<index>``."""
        name, _, place = problem_id.partition("/")
        split, _, index = place.partition("/")
        if name not in self._domains or split != "train" or not index.isdecimal():
            raise StageError(
                f"problem {problem_id} was recorded, but the stage's domains are {sorted(self._domains)}; a replaying stage names "
                "its domains as the recording one did (domains: [{name: ..., domain: ...}])",
                reason="replay_problem_missing",
                details={"problem_id": problem_id},
            )
        try:
            problem = self._domains[name].problem(split, int(index))
        except (IndexError, StageError) as error:
            raise StageError(
                f"problem {problem_id} was recorded and does not exist any more: {error}",
                reason="replay_problem_missing",
                details={"problem_id": problem_id},
            ) from error
        return problem
