"""Completions that the rollout workers sample from the current policy, with dynamic sampling, a prefix, and recording.

Dynamic sampling (DAPO, 2503.14476, eq. 11): a group whose judged rollouts all have the same score teaches a group-relative
method nothing; it is dropped and other problems take its place. Refill ``round`` of step ``step`` takes its problems from an
index range of its own, so that neither another step nor a restart changes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cluster.errors import StageError
from cluster.messages import Completion, GenerationRequest, Problem, RolloutGroup, Verdict
from rollout.engines.base import EngineSampling
from rollout.sources.base import StageProblems, StepExperience
from rollout.sources.recording import write_step

Judged = list[tuple[RolloutGroup, list[Verdict]]]


class PolicySource:
    """See the module docstring."""

    def __init__(self, experience: Any, stage: StageProblems):
        if experience.record and stage.record_to is None:
            raise ValueError("experience.record is set, but record_to names no folder")
        self._experience = experience
        self._stage = stage

    def next_experience(self, step: int, policy_version: int) -> StepExperience:
        """See ``Source``. Raises ``StageError``: ``stale_rollouts`` where an engine held another publication,
        ``rollouts_missing`` where the answer is not the completions that were asked for."""
        sampling, metrics = self._sampling(step)
        judged = self._judged(step, 0, self._stage.problems(step), sampling, policy_version)
        if self._experience.dynamic_sampling is not None:
            judged, of_refills = self._refilled(step, judged, sampling, policy_version)
            metrics |= of_refills
        groups, verdicts = [group for group, _ in judged], [of_group for _, of_group in judged]
        if self._experience.record:
            write_step(self._stage.record_to, step, groups, sampling)
        return StepExperience(groups=groups, verdicts=verdicts, metrics=metrics)

    def _sampling(self, step: int) -> tuple[EngineSampling, dict[str, float]]:
        """The stage's sampling, with the limit that the prefix has at this step."""
        sampling, prefix = self._stage.sampling, self._experience.prefix
        if prefix is None:
            return sampling, {}
        limit = prefix.tokens_at(step, sampling.max_tokens)
        return replace(sampling, max_tokens=limit), {"rollout/prefix_tokens": float(limit)}

    def _refilled(
        self, step: int, judged: Judged, sampling: EngineSampling, policy_version: int
    ) -> tuple[Judged, dict[str, float]]:
        """The groups whose scores differ, refilled to the wanted number within ``max_refills`` rounds. Where there is none at
        all, the step's own equal groups: a step is never empty."""
        stage, max_refills = self._stage, self._experience.dynamic_sampling.max_refills
        own, rounds, sampled = judged, 0, len(judged)
        kept = [pair for pair in judged if scores_differ(pair[1])]
        while len(kept) < stage.problems_per_step and rounds < max_refills:
            problems = stage.refill_problems(step * max_refills + rounds, stage.problems_per_step - len(kept))
            rounds += 1
            more = self._judged(step, rounds * stage.problems_per_step, problems, sampling, policy_version)
            sampled += len(more)
            kept += [pair for pair in more if scores_differ(pair[1])]
        metrics = {
            "rollout/refill_rounds": float(rounds),
            "rollout/refill_cap_reached": float(len(kept) < stage.problems_per_step),
            "rollout/sampled_groups": float(sampled),
            "rollout/dropped_groups": float(sampled - len(kept) - (0 if kept else len(own))),
            "rollout/equal_groups_kept": float(0 if kept else len(own)),
        }
        return kept or own, metrics

    def _judged(
        self, step: int, first_slot: int, problems: Sequence[Problem], sampling: EngineSampling, policy_version: int
    ) -> Judged:
        """Sampled and verified groups of ``problems``, which have the slots from ``first_slot`` on."""
        stage = self._stage
        requests = [
            GenerationRequest(
                prompt_token_ids=stage.prompt(problem),
                num_completions=stage.rollouts_per_problem,
                seed=stage.seed(step, first_slot + place),
            )
            for place, problem in enumerate(problems)
        ]
        answers = stage.generate(requests, sampling)
        self._check(step, len(problems), answers, policy_version)
        groups = [
            stage.group(step, first_slot + place, problem, request.prompt_token_ids, completions)
            for place, (problem, request, completions) in enumerate(zip(problems, requests, answers, strict=True))
        ]
        return list(zip(groups, stage.verify(groups), strict=True))

    def _check(self, step: int, num_problems: int, answers: list[tuple[Completion, ...]], policy_version: int) -> None:
        wanted = [self._stage.rollouts_per_problem] * num_problems
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


def scores_differ(verdicts: Sequence[Verdict]) -> bool:
    """Whether the rollouts that could be judged have more than one score."""
    return len({verdict.score for verdict in verdicts if verdict.error is None}) > 1
