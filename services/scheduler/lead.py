"""The lead of a job (learner rank 0): the one process that talks to rollout workers, the teacher, verifiers and the log.

Plain class over handed-in parts. Everything a stage does differently comes from its composition through tables: the
experience's source, the context's builder, the teacher's strategy.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.messages import BatchShard, StepReport
from cluster.spec.domains import DomainSpec
from cluster.spec.job import JobSpec, ResolvedStage
from cluster.spec.teachers import external_key
from services.scheduler.batches import Batch, Batches
from services.scheduler.phases import Phases
from services.scheduler.progress import Progress

SAMPLES_EVERY_STEPS = 10
SAMPLES_PER_TABLE = 4
SOLUTIONS_COMPARED = 512
"""Solutions of a stage's problems that the collapse watch knows."""
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
    side_watch: Any


class Lead:
    """The lead's side of every step; see ``stage_loop.StageLead``."""

    def __init__(
        self,
        job: JobSpec,
        parts: LeadParts,
        progress: Progress,
        *,
        num_ranks: int,
        data_files: dict[str, str] | None = None,
        run_dir: Path | None = None,
        recorded: Mapping[str, str] | None = None,
    ):
        self._job = job
        self._run_dir, self._recorded = run_dir, recorded
        self._data_files = data_files or {}
        self.parts = parts
        self._progress = progress
        self._num_ranks = num_ranks
        self._stage: ResolvedStage | None = None
        self._batches: Batches | None = None
        self._batch: Batch | None = None
        self._phases = Phases()
        self._pack_metrics: dict[str, float] = {}
        self._parity_nats = 0.0
        self._step_started = time.perf_counter()
        self._step_tokens = 0
        self._step_groups: list[Any] = []

    def begin_stage(self, stage: ResolvedStage, *, resumed: bool, snapshot: Path) -> None:
        """Build the stage's source and contexts and anchor its teacher at the published weights."""
        self.close()
        self._stage, self._batch = stage, None
        self._batches = None
        if stage.policy is None:
            self._batches = Batches(self._job, stage, self.parts, num_ranks=self._num_ranks, run_dir=self._run_dir, recorded=self._recorded)
        if stage.composition.teacher is not None:
            self._anchor_teacher(stage, resumed=resumed, snapshot=snapshot)
        if stage.composition.needs_reference:
            anchor = "resume" if resumed else ANCHORS[stage.boundary.reference]
            self.parts.teacher.begin_reference(anchor=anchor, snapshot=snapshot, update=self._progress.cursor.updates)
        solutions = self._batches.demonstrations(SOLUTIONS_COMPARED) if self._batches is not None else []
        self.parts.side_watch.begin_stage(stage, resumed=resumed, solutions=solutions)
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
        self._batches.masked_token_ids = follow.masked_token_ids
        self.parts.canary.restart(stage.composition.teacher, follow)

    def close(self) -> None:
        """Let go of the processes that the last stage's contexts hold."""
        if self._batches is not None:
            self._batches.close()

    def record_bring_up(self) -> None:
        """The parity of the first publication of this incarnation, which belongs to no step."""
        step = self._progress.cursor.global_step
        self.parts.log.metrics(
            stage=None, stage_index=None, step=step, global_step=step, values={"parity/max_abs_nats": self._parity_nats}
        )

    def wanted(self) -> str:
        """What the job is wanted to do: running, paused, cancelled."""
        return self.parts.link.call("wanted")

    def record_given(self) -> None:
        """The parity of a given stage's publication."""
        self.parts.log.metrics(
            stage=self._stage.name,
            stage_index=self._stage.index,
            step=0,
            global_step=self._progress.cursor.global_step,
            values={"parity/max_abs_nats": self._parity_nats},
        )

    # -- one step ----------------------------------------------------------------------------------------------------

    def sample(self, step: int, version: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Roll out and verify; (prompts, completions) for the learner to look at before ``prepare``."""
        self._batch = self._batches.sample(step, version)
        rollouts = self._batch.rollouts
        return [rollout.prompt_token_ids for rollout in rollouts], [rollout.completion.token_ids for rollout in rollouts]

    def prepare(self, step: int, version: int, looked: list | None = None) -> list[tuple[BatchShard, ...]]:
        """Roll out unless ``sample`` did, then supervision and packing. Per rank its shard of every update."""
        batch = self._batch if looked is not None else self._batches.sample(step, version)
        policy_scores = None
        if looked is not None:
            policy_scores = {rollout.rollout_id: scores for rollout, scores in zip(batch.rollouts, looked, strict=True)}
        self._batches.build(batch, updates=self._progress.cursor.updates, policy_scores=policy_scores)
        self._batch, self._phases = None, batch.phases
        self._remember(batch, version)
        return batch.shards

    def _remember(self, batch: Batch, version: int) -> None:
        rollouts = batch.rollouts
        self._step_groups = batch.groups
        self._step_tokens = sum(len(rollout.completion.token_ids) for rollout in rollouts)
        staleness = [version - rollout.completion.policy_version for rollout in rollouts if rollout.completion.policy_version]
        self._pack_metrics = {**batch.metrics, "rollout/staleness_versions_max": float(max(staleness, default=0))}
        if batch.step % SAMPLES_EVERY_STEPS == 0:
            self.parts.log.table(
                "samples",
                self._sample_rows(batch.step, batch.groups, batch.verdicts),
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

    def follow(self, updates: int, snapshot: Path, *, after: int | None = None, ends_batch: bool = True) -> None:
        """Let the teacher, which is at update ``after``, follow and prove that its weights are what its strategy gives.

        ``ends_batch`` is False for the optimizer steps of a batch before its last.
        """
        if self._stage is None or self._stage.composition.teacher is None:
            return
        follow = self.parts.teacher.follow(updates, snapshot, after=after, ends_batch=ends_batch)
        self.parts.canary.observe(follow, snapshot, after=after, ends_batch=ends_batch)

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
            "throughput/trained_tokens_per_s": report.metrics.get("tokens/trained", 0.0) / max(seconds["learner"], 1e-9),
            "throughput/completion_tokens_per_s": self._step_tokens / max(self._phases.seconds.get("rollout", 0.0), 1e-9),
        }
        values |= {f"seconds/{name}": value for name, value in {**seconds, **self._phases.seconds}.items()}
        cursor = self._progress.cursor
        values |= self.parts.side_watch.observe(cursor.step, values, self._step_groups)
        self.parts.log.metrics(
            stage=self._stage.name, stage_index=self._stage.index, step=cursor.step, global_step=cursor.global_step, values=values
        )
        summary = {"loss": report.loss, "score": self._pack_metrics.get("rollout/score_mean")}
        return self.parts.link.call(
            "step_done", self._stage.index, step=cursor.step, total_steps=self._stage.steps, finite=report.finite, summary=summary
        )

    def evaluate_during(self, snapshot: Path | None) -> None:
        """Score the stage's own domains and measure drift every ``evaluation.every_steps`` steps, the stage's end excepted."""
        every, step = self._job.evaluation.every_steps, self._progress.cursor.step
        if every and step % every == 0 and step < self._stage.steps:
            scored = self.parts.evaluations.during(self._stage, step, self._progress.cursor.global_step)
            if snapshot is not None:
                self.parts.side_watch.drift(self._stage, step, self._progress.cursor.global_step, snapshot, scored)
            self._step_started = time.perf_counter()


def _headline(stage: ResolvedStage) -> dict[str, str]:
    """What a reader of a run looks for first; the whole composition is in the spec beside it."""
    if stage.policy is not None:
        return {"recipe": stage.recipe, "policy": external_key(stage.policy)}
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
        "boundary": f"teacher {stage.boundary.teacher}, reference {stage.boundary.reference}, optimizer {stage.boundary.optimizer}",
        "updates_per_batch": str(stage.updates_per_batch),
    }
