"""The domains' own solutions in the place of rollouts."""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.messages import Completion, Problem
from rollout.sources.base import StageProblems, StepExperience


class DemonstrationSource:
    """One solution for each problem. Nothing sampled them: log-probabilities are 0 and the policy version is 0. One longer
    than ``max_tokens`` is cut there, without an end of turn, like a sampled one."""

    def __init__(self, experience: Any, stage: StageProblems):
        self._stage = stage

    def next_experience(self, step: int, policy_version: int) -> StepExperience:
        """See ``Source``."""
        stage = self._stage
        groups = [
            stage.group(step, slot, problem, stage.prompt(problem), [self._demonstration(problem)])
            for slot, problem in enumerate(stage.problems(step))
        ]
        return StepExperience(groups=groups, verdicts=stage.verify(groups))

    def _demonstration(self, problem: Problem) -> Completion:
        ids = self._stage.chat.completion_token_ids(problem.solution)
        kept = ids[: self._stage.sampling.max_tokens]
        return Completion(
            token_ids=kept,
            logprobs=np.zeros(len(kept), dtype=np.float32),
            finish_reason="stop" if len(kept) == len(ids) else "length",
            policy_version=0,
        )
