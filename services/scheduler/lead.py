"""The lead of a job (learner rank 0): the one process that talks to rollout workers, the teacher, verifiers and the log.

Plain class over handed-in parts. Everything a stage does differently comes from its composition through tables: the
experience's source, the context's builder, the teacher's strategy.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import StageError
from cluster.messages import BatchShard, PrivilegedContext, RolloutGroup, StepReport, TeacherRequest, TeacherScores, Verdict
from cluster.spec.domains import DomainSpec
from cluster.spec.job import JobSpec, ResolvedStage
from rollout.context import build_context
from rollout.domains import build_domain
from rollout.engines.base import EngineSampling
from rollout.sources import build_source
from services.scheduler.phases import Phases
from services.scheduler.progress import Progress
from trainer.packing import pack

MAX_VERIFIER_FAILURE_SHARE = 0.2
SAMPLES_EVERY_STEPS = 10
SAMPLES_PER_TABLE = 4
ANCHORS = {"keep": "keep", "re_anchor": "policy", "reset": "base"}
"""The job file's words for a stage boundary to the teacher's."""


@dataclass(slots=True)
class LeadParts:
    """What the lead works with; built by ``services/scheduler/train_function.py``."""

    link: Any
    log: Any
    pool: Any
    teacher: Any
    verifiers: Any
    chat: Any
    probe: Any
    canary: Any
    evaluations: Any


class Lead:
    """The lead's side of every step; see ``stage_loop.StageLead``."""

    def __init__(self, job: JobSpec, parts: LeadParts, progress: Progress, *, num_ranks: int, data_files: dict[str, str] | None = None):
        self._job = job
        self._data_files = data_files or {}
        self.parts = parts
        self._progress = progress
        self._num_ranks = num_ranks
        self._stage: ResolvedStage | None = None
        self._teacher_head: tuple[int, np.ndarray] | None = None
        self._phases = Phases()
        self._pack_metrics: dict[str, float] = {}
        self._parity_nats = 0.0
        self._step_started = time.perf_counter()
        self._step_tokens = 0

    def begin_stage(self, stage: ResolvedStage, *, resumed: bool, snapshot: Path) -> None:
        """Build the stage's source and contexts and anchor its teacher at the published weights."""
        self._stage = stage
        self._domains = {part.name: build_domain(part.domain, name=part.name, seed=self._job.seed) for part in stage.domains}
        self._sampling = EngineSampling(
            temperature=stage.sampling.temperature,
            top_p=stage.sampling.top_p,
            max_tokens=stage.sampling.max_tokens,
            support_k=stage.composition.rollout_support_k,
        )
        self._source = build_source(
            stage.composition.experience,
            domains=[(self._domains[part.name], part.weight) for part in stage.domains],
            chat=self.parts.chat,
            stage_index=stage.index,
            job_seed=self._job.seed,
            problems_per_step=stage.problems_per_step,
            rollouts_per_problem=stage.rollouts_per_problem,
            sampling=self._sampling,
            max_prompt_tokens=stage.max_prompt_tokens,
            generate=self.parts.pool.generate,
        )
        self._contexts = build_context(stage.composition.context, self.parts.chat)
        self._teacher_head = None
        if stage.composition.teacher is not None:
            self._anchor_teacher(stage, resumed=resumed, snapshot=snapshot)
        self.parts.log.stage_start(stage.name, stage.index, self._progress.cursor.global_step)
        self.parts.log.params(stage.name, _headline(stage), global_step=self._progress.cursor.global_step)
        for part in stage.domains:
            self.parts.log.dataset(part.name, self._dataset_digest(part.domain), "train", stage=stage.name, global_step=self._progress.cursor.global_step)
        self.parts.link.call(
            "stage_started", stage.index, stage.name, step=self._progress.cursor.step, total_steps=stage.steps, resumed=resumed
        )
        self._step_started = time.perf_counter()

    def _dataset_digest(self, domain: DomainSpec) -> str:
        """Of the data file's bytes where there is one; otherwise of what the problems are generated from."""
        known = self._data_files.get(getattr(domain, "path", None))
        if known:
            return known
        return hashlib.sha256(f"{domain.model_dump_json()}/{self._job.seed}".encode()).hexdigest()

    def _anchor_teacher(self, stage: ResolvedStage, *, resumed: bool, snapshot: Path) -> None:
        anchor = "resume" if resumed else ANCHORS[stage.boundary.teacher]
        follow = self.parts.teacher.begin_stage(
            stage.composition.teacher, anchor=anchor, snapshot=snapshot, update=self._progress.cursor.updates
        )
        self.parts.canary.restart(stage.composition.teacher, follow)

    def record_bring_up(self) -> None:
        """The parity of the first publication of this incarnation, which belongs to no step."""
        step = self._progress.cursor.global_step
        self.parts.log.metrics(
            stage=None, stage_index=None, step=step, global_step=step, values={"parity/max_abs_nats": self._parity_nats}
        )

    # -- one step ----------------------------------------------------------------------------------------------------

    def prepare(self, step: int, version: int) -> list[BatchShard]:
        """Roll out, verify, build contexts, let the teacher score, pack. One shard per rank."""
        stage, phases = self._stage, Phases()
        with phases("rollout"):
            groups = self._source.next_groups(step, version)
        with phases("verify"):
            verdicts = self._verify(groups)
        contexts, scores = None, None
        if stage.composition.teacher is not None:
            with phases("context"):
                contexts = [self._contexts.build(group, of_group) for group, of_group in zip(groups, verdicts, strict=True)]
            with phases("teacher"):
                scores = self._score(groups, contexts)
        with phases("pack"):
            packed = pack(
                groups,
                verdicts,
                scores,
                stage.composition,
                num_ranks=self._num_ranks,
                micro_batch_tokens=self._job.compute.micro_batch_tokens,
                teacher_head=self._head() if stage.composition.needs_hidden else None,
                expected_teacher_version=self._progress.cursor.updates if scores is not None else None,
            )
        self._phases = phases
        self._remember(step, groups, verdicts, packed.metrics, contexts, version)
        return list(packed.shards)

    def _verify(self, groups: list[RolloutGroup]) -> list[list[Verdict]]:
        tasks = [
            (self._domains[group.problem.domain], group.problem, rollout.text) for group in groups for rollout in group.rollouts
        ]
        flat = iter(self.parts.verifiers.verify(tasks))
        verdicts = [[next(flat) for _ in group.rollouts] for group in groups]
        failed = [verdict.error for of_group in verdicts for verdict in of_group if verdict.error is not None]
        if failed and len(failed) > MAX_VERIFIER_FAILURE_SHARE * len(tasks):
            raise StageError(
                f"stage {self._stage.name}: the verifier failed on {len(failed)} of {len(tasks)} completions, "
                f"more than {MAX_VERIFIER_FAILURE_SHARE:.0%}; the first said: {failed[0]}",
                reason="verifier_failures",
            )
        return verdicts

    def _score(
        self, groups: list[RolloutGroup], contexts: list[list[PrivilegedContext | None]]
    ) -> list[list[TeacherScores | None]]:
        requests = []
        for group, of_group in zip(groups, contexts, strict=True):
            for rollout, context in zip(group.rollouts, of_group, strict=True):
                if context is not None:
                    requests.append(
                        TeacherRequest(
                            rollout_id=rollout.rollout_id,
                            problem_id=context.problem_id,
                            prompt_token_ids=context.teacher_prompt_token_ids,
                            completion_token_ids=rollout.completion.token_ids,
                            support_ids=rollout.completion.support_ids,
                        )
                    )
        composition = self._stage.composition
        support = composition.top_k
        own_k = support.k if support is not None and support.support_from == "teacher" else 0
        scores = self.parts.teacher.score(
            requests, temperature=self._stage.sampling.temperature, top_k=own_k, hidden=composition.needs_hidden
        )
        by_rollout = {score.rollout_id: score for score in scores}
        return [[by_rollout.get(rollout.rollout_id) for rollout in group.rollouts] for group in groups]

    def _head(self) -> np.ndarray:
        """The teacher's output matrix, fetched again only when the teacher has moved."""
        version = self._progress.cursor.updates
        if self._teacher_head is None or self._teacher_head[0] != version:
            self._teacher_head = (version, self.parts.teacher.head())
        return self._teacher_head[1]

    def _remember(self, step, groups, verdicts, pack_metrics, contexts, version) -> None:
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        self._step_tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
        staleness = [version - rollout.completion.policy_version for rollout in rollouts if rollout.completion.policy_version]
        self._pack_metrics = {**pack_metrics, "rollout/staleness_versions_max": float(max(staleness, default=0))}
        if contexts is not None:
            flat = [context for of_group in contexts for context in of_group]
            shown = [context for context in flat if context is not None]
            self._pack_metrics["teacher/context_share"] = len(shown) / max(len(flat), 1)
            self._pack_metrics["teacher/context_truncated_tokens"] = float(sum(context.truncated_tokens for context in shown))
        if step % SAMPLES_EVERY_STEPS == 0:
            self.parts.log.table(
                "samples",
                self._sample_rows(step, groups, verdicts),
                stage=self._stage.name,
                global_step=self._progress.cursor.global_step,
            )

    def _sample_rows(self, step: int, groups, verdicts) -> list[dict]:
        return [
            {
                "step": step,
                "problem_id": group.problem.problem_id,
                "prompt": group.problem.messages[-1]["content"],
                "completion": group.rollouts[0].text,
                "score": of_group[0].score,
                "feedback": of_group[0].feedback,
            }
            for group, of_group in list(zip(groups, verdicts, strict=True))[:SAMPLES_PER_TABLE]
        ]

    # -- after the update --------------------------------------------------------------------------------------------

    def follow(self, updates: int, publication) -> None:
        """Let the teacher follow the publication and prove that its weights are what its strategy gives."""
        if self._stage is None or self._stage.composition.teacher is None:
            return
        follow = self.parts.teacher.follow(updates, publication.snapshot)
        self.parts.canary.observe(follow, publication.snapshot)

    def probe_sequences(self):
        return self.parts.probe.sample()

    def check_parity(self, probed, logprobs: list[np.ndarray]) -> float:
        """Raises ``ParityError`` above the bound; returns the largest difference in nats."""
        self._parity_nats = self.parts.probe.compare(probed, logprobs)
        return self._parity_nats

    def record(self, report: StepReport, seconds: dict[str, float]) -> str:
        """Write the step to the log and the job's row; returns what the job is wanted to do: running, paused, cancelled."""
        now = time.perf_counter()
        step_s, self._step_started = now - self._step_started, now
        values = {
            **self._pack_metrics,
            **report.metrics,
            "loss/total": report.loss,
            "gradient/norm": report.gradient_norm,
            "step/applied": float(report.applied),
            "step/finite": float(report.finite),
            "policy/version": float(self._progress.version),
            "parity/max_abs_nats": self._parity_nats,
            "seconds/step": step_s,
            "throughput/trained_tokens_per_s": report.metrics.get("tokens/forward", 0.0) / max(seconds["learner"], 1e-9),
            "throughput/completion_tokens_per_s": self._step_tokens / max(self._phases.seconds.get("rollout", 0.0), 1e-9),
        }
        values |= {f"seconds/{name}": value for name, value in {**seconds, **self._phases.seconds}.items()}
        cursor = self._progress.cursor
        self.parts.log.metrics(
            stage=self._stage.name, stage_index=self._stage.index, step=cursor.step, global_step=cursor.global_step, values=values
        )
        summary = {"loss": report.loss, "score": self._pack_metrics.get("rollout/score_mean")}
        return self.parts.link.call(
            "step_done", self._stage.index, step=cursor.step, total_steps=self._stage.steps, finite=report.finite, summary=summary
        )

    def evaluate_during(self) -> None:
        """Score the stage's own domains every ``evaluation.every_steps`` steps, the stage's end excepted."""
        every, step = self._job.evaluation.every_steps, self._progress.cursor.step
        if every and step % every == 0 and step < self._stage.steps:
            self.parts.evaluations.during(self._stage, step, self._progress.cursor.global_step)
            self._step_started = time.perf_counter()


def _headline(stage: ResolvedStage) -> dict[str, str]:
    """What a reader of a run looks for first; the whole composition is in the spec beside it."""
    composition = stage.composition
    return {
        "recipe": stage.recipe,
        "teacher": composition.teacher.model_dump_json() if composition.teacher else "none",
        "context": composition.context.kind,
        "objectives": ", ".join(f"{term.coefficient:g} {term.objective.kind} ({term.support.kind})" for term in composition.terms),
        "steps": str(stage.steps),
        "completions_per_step": str(stage.problems_per_step * stage.rollouts_per_problem),
        "learning_rate": f"{stage.optimizer.lr:g}",
        "temperature": f"{stage.sampling.temperature:g}",
        "boundary": f"teacher {stage.boundary.teacher}, optimizer {stage.boundary.optimizer}",
    }
