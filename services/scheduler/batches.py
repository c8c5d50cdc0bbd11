"""From a step number to the shards that the learner trains on: roll out, verify, build contexts, score, pack.

The lead's work, without the log. Everything that methods do differently comes from the stage's composition through tables:
the experience's source, the context's builder, the teacher's strategy, the term's masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import StageError
from cluster.messages import BatchShard, PrivilegedContext, RolloutGroup, TeacherRequest, TeacherScores, Verdict
from cluster.spec.job import JobSpec, ResolvedStage
from rollout.context import StageContexts
from rollout.domains import build_domain
from rollout.engines.base import EngineSampling
from rollout.sources import StageProblems, build_source
from services.scheduler.phases import Phases
from trainer.packing import pack

MAX_VERIFIER_FAILURE_SHARE = 0.2

Contexts = list[list[PrivilegedContext | None]]


@dataclass(slots=True, kw_only=True)
class Batch:
    """One step's data, as it grows."""

    step: int
    groups: list[RolloutGroup]
    verdicts: list[list[Verdict]]
    metrics: dict[str, float]
    phases: Phases
    contexts: Contexts | None = None
    shards: list[tuple[BatchShard, ...]] = field(default_factory=list)
    """Per rank its shard of every update."""

    @property
    def rollouts(self) -> list[Any]:
        return [rollout for group in self.groups for rollout in group.rollouts]


class Batches:
    """Built by the lead for each stage; ``sample`` and then ``build``, once a step."""

    def __init__(
        self,
        job: JobSpec,
        stage: ResolvedStage,
        parts: Any,
        *,
        num_ranks: int,
        run_dir: Path | None = None,
        recorded: Mapping[str, str] | None = None,
    ):
        """``recorded``: where the paths of recorded rollouts in the job file lie."""
        self._job, self._stage, self._parts, self._num_ranks = job, stage, parts, num_ranks
        self._domains = {part.name: build_domain(part.domain, name=part.name, seed=job.seed) for part in stage.domains}
        composition = stage.composition
        sampling = EngineSampling(
            temperature=stage.sampling.temperature,
            top_p=stage.sampling.top_p,
            top_k=stage.sampling.top_k,
            max_tokens=stage.sampling.max_tokens,
            support_k=composition.rollout_support_k,
        )
        self._phases = Phases()
        self._failures: list[str] = []
        self._judged = 0
        self._problems = StageProblems(
            domains=[(self._domains[part.name], part.weight) for part in stage.domains],
            chat=parts.chat,
            stage_index=stage.index,
            job_seed=job.seed,
            problems_per_step=stage.problems_per_step,
            rollouts_per_problem=stage.rollouts_per_problem,
            sampling=sampling,
            max_prompt_tokens=stage.max_prompt_tokens,
            generate=parts.pool.generate,
            verify=self.verify,
            record_to=None if run_dir is None else recording_folder(run_dir, stage.index, stage.name),
            replay_from=_replayed(job, stage, run_dir, recorded or {}),
        )
        self._source = build_source(composition.experience, self._problems)
        self._contexts = None
        if composition.teacher is not None:
            self._contexts = StageContexts(composition, parts.chat, self._generate_words, job_seed=job.seed, stage_index=stage.index)
        self._head: tuple[int, np.ndarray] | None = None
        self.masked_token_ids: dict[str, frozenset[int]] = {}
        """By domain, of a teacher whose vocabulary differs in special ids."""

    def close(self) -> None:
        """Let go of processes that the contexts hold."""
        if self._contexts is not None:
            self._contexts.close()

    def demonstrations(self, count: int) -> list[np.ndarray]:
        """Token ids of the solutions of the stage's first problems, ``count`` at most."""
        return [completion.token_ids for completion in self._problems.demonstrations(count)]

    # -- experience --------------------------------------------------------------------------------------------------

    def sample(self, step: int, version: int) -> Batch:
        """Roll out (or replay) and verify."""
        self._phases = phases = Phases()
        self._failures, self._judged = [], 0
        with phases("rollout"):
            experience = self._source.next_experience(step, version)
        phases.seconds["rollout"] -= phases.seconds.get("verify", 0.0)  # verified from inside the source
        return Batch(step=step, groups=experience.groups, verdicts=experience.verdicts, metrics=dict(experience.metrics), phases=phases)

    def verify(self, groups: Sequence[RolloutGroup]) -> list[list[Verdict]]:
        """Raises ``StageError`` (verifier_failures) where the verifier itself failed on more than a fifth of the step's
        completions so far: a refill may be one problem."""
        tasks = [(self._domains[group.problem.domain], group.problem, rollout.text) for group in groups for rollout in group.rollouts]
        with self._phases("verify"):
            flat = iter(self._parts.verifiers.verify(tasks))
        verdicts = [[next(flat) for _ in group.rollouts] for group in groups]
        self._judged += len(tasks)
        self._failures += [verdict.error for of_group in verdicts for verdict in of_group if verdict.error is not None]
        if self._failures and len(self._failures) > MAX_VERIFIER_FAILURE_SHARE * self._judged:
            raise StageError(
                f"stage {self._stage.name}: the verifier failed on {len(self._failures)} of {self._judged} completions, "
                f"more than {MAX_VERIFIER_FAILURE_SHARE:.0%}; the first said: {self._failures[0]}",
                reason="verifier_failures",
            )
        return verdicts

    def _generate_words(self, requests: Sequence[Any], sampling: EngineSampling) -> list:
        """What the policy writes for a context; its seconds count as generation, not as building the context."""
        with self._phases("context_rollout"):
            return self._parts.pool.generate(requests, sampling)

    # -- supervision -------------------------------------------------------------------------------------------------

    def build(self, batch: Batch, *, updates: int, policy_scores: dict[str, Any] | None = None) -> Batch:
        """Contexts, teacher and reference scores, shards. ``updates``: the number that the teacher's weights must be at."""
        composition, phases = self._stage.composition, batch.phases
        scores = reference = None
        full = "none"
        if composition.teacher is not None:
            with phases("context"):
                batch.contexts = self._contexts.build(batch.groups, batch.verdicts, batch.step)
            phases.seconds["context"] -= phases.seconds.get("context_rollout", 0.0)
            batch.metrics |= self._contexts.metrics
            with phases("teacher"):
                scores, full = self._score(batch.groups, batch.contexts)
        if composition.needs_reference:
            with phases("reference"):
                reference = self._reference(batch.groups)
        with phases("pack"):
            packed = pack(
                batch.groups,
                batch.verdicts,
                scores,
                composition,
                num_ranks=self._num_ranks,
                micro_batch_tokens=self._job.compute.micro_batch_tokens,
                step=batch.step,
                max_tokens=self._stage.sampling.max_tokens,
                table=self._parts.chat,
                updates=self._stage.updates_per_batch,
                teacher_head=self._teacher_head(updates) if full == "hidden" else None,
                expected_teacher_version=updates if scores is not None else None,
                reference_logprobs=reference,
                policy_scores=policy_scores,
                masked_token_ids=self.masked_token_ids,
            )
        batch.shards = [tuple(update[rank] for update in packed.updates) for rank in range(self._num_ranks)]
        batch.metrics |= packed.metrics
        return batch

    def _score(self, groups: Sequence[RolloutGroup], contexts: Contexts) -> tuple[list[list[TeacherScores | None]], str]:
        """The teacher's scores of the rollouts that have a context, and in what form its whole distribution came."""
        composition = self._stage.composition
        requests = [
            TeacherRequest(
                rollout_id=rollout.rollout_id,
                problem_id=context.problem_id,
                prompt_token_ids=context.teacher_prompt_token_ids,
                completion_token_ids=rollout.completion.token_ids,
                support_ids=self._support_ids(rollout),
            )
            for group, of_group in zip(groups, contexts, strict=True)
            for rollout, context in zip(group.rollouts, of_group, strict=True)
            if context is not None
        ]
        full = "none"
        if composition.needs_full_teacher:
            full = self._parts.teacher.full_payload(sum(len(request.completion_token_ids) for request in requests))
        support = composition.top_k
        scores = self._parts.teacher.score(
            requests,
            temperature=self._stage.sampling.temperature,
            top_k=composition.teacher_support_k,
            join_sampled=support is not None and support.support_from == "teacher" and support.join_sampled,
            entropies=composition.needs_teacher_entropy,
            full=full,
        )
        by_rollout = {score.rollout_id: score for score in scores}
        return [[by_rollout.get(rollout.rollout_id) for rollout in group.rollouts] for group in groups], full

    def _support_ids(self, rollout: Any) -> np.ndarray | None:
        """int32 [T, K] that the engine recorded, or [T, K + 1] with the sampled token as the last column."""
        support, ids = self._stage.composition.top_k, rollout.completion.support_ids
        if support is None or support.support_from != "rollout" or ids is None:
            return None
        return np.concatenate((ids, rollout.completion.token_ids[:, None]), axis=1) if support.join_sampled else ids

    def _reference(self, groups: Sequence[RolloutGroup]) -> dict[str, np.ndarray]:
        """The sampled tokens' log-probabilities under the reference, which reads the policy's own prompt."""
        requests = [
            TeacherRequest(
                rollout_id=rollout.rollout_id,
                problem_id=rollout.problem_id,
                prompt_token_ids=rollout.prompt_token_ids,
                completion_token_ids=rollout.completion.token_ids,
            )
            for group in groups
            for rollout in group.rollouts
        ]
        scores = self._parts.teacher.reference_logprobs(requests, temperature=self._stage.sampling.temperature)
        return {score.rollout_id: score.logprobs for score in scores}

    def _teacher_head(self, updates: int) -> np.ndarray:
        """The teacher's output matrix, fetched again only when the teacher has moved."""
        if self._head is None or self._head[0] != updates:
            self._head = (updates, self._parts.teacher.head())
        return self._head[1]


def recording_folder(run_dir: Path, stage_index: int, stage_name: str) -> Path:
    """Where a stage with ``experience.record`` keeps its rollouts."""
    return run_dir / "stages" / f"{stage_index}-{stage_name}" / "rollouts"


def _replayed(job: JobSpec, stage: ResolvedStage, run_dir: Path | None, recorded: Mapping[str, str]) -> Path | None:
    experience = stage.composition.experience
    if experience.kind != "replayed":
        return None
    if experience.path is not None:
        return Path(recorded.get(experience.path, experience.path))
    index = [past.name for past in job.stages].index(experience.stage)
    return None if run_dir is None else recording_folder(run_dir, index, experience.stage)
