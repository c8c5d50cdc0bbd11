"""What Ray Train runs on every learner rank: the stage scheduler of one job.

Ray Train calls this function again, in new processes, after a rank was lost; it then starts from the last committed
checkpoint. Order of a bring-up: drain half-open updates, restore, publish, probe, and only then roll out.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cluster.errors import LOST_REASONS, HoldfastError
from cluster.spec.job import JobSpec
from cluster.spec.teachers import external_key
from services.scheduler.phases import Phases
from services.scheduler.progress import Cursor, Progress
from services.scheduler.ranks import Ranks
from services.scheduler.reporting import write_json
from services.scheduler.stage_loop import StopRequested, World, publish_and_follow, run_stage

PARITY_ROUNDS = 4
"""Of the calibration in bfloat16."""


def train_function(config: dict[str, Any]) -> dict[str, Any]:
    """Run the job to its end, to a stop, or to an error with a reason code; returns the outcome as data."""
    from ray import train

    context = train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    _use_threads(config["threads"], ranks.world_size)
    try:
        JobRun(config, ranks).run()
    except StopRequested as stop:
        return {"outcome": stop.outcome, "reason": stop.outcome, "message": f"{stop.outcome} at a step boundary"}
    except HoldfastError as error:
        # Data, not an exception: Ray Train would start the ranks again beside the same dead actors.
        outcome = "lost" if error.reason in LOST_REASONS else "failed"
        return {"outcome": outcome, "reason": error.reason, "message": error.message}
    return {"outcome": "succeeded", "reason": None, "message": "all stages done"}


def _use_threads(threads: int, world_size: int) -> None:
    import torch

    torch.set_num_threads(max(1, threads // world_size))


class JobRun:
    """One incarnation of a job on this rank."""

    def __init__(self, config: dict[str, Any], ranks: Ranks):
        from services.weights.publisher import Publisher
        from trainer.learner import Learner, LearnerSettings

        self.config = config
        self.ranks = ranks
        self.job = JobSpec.model_validate_json(config["spec"])
        self.stages = self.job.resolved_stages()
        self.run_dir = Path(config["run_dir"])
        self.link = self._link() if ranks.is_lead else None
        start = ranks.from_lead(self._where_to_start)
        self.cursor, self.checkpoint, self.checkpoint_kind = Cursor(**start["cursor"]), start["checkpoint"], start["kind"]
        self.progress = Progress(self.cursor, incarnation=start["incarnation"], checkpoint_every=self.job.checkpoint.every_steps)
        self.learner = Learner(
            LearnerSettings(
                model_folder=config["model_folder"],
                device=config["device"],
                dtype=config["dtype"],
                micro_batch_tokens=self.job.compute.micro_batch_tokens,
                seed=self.job.seed,
            ),
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        self.publisher = Publisher(
            self.learner,
            rank=ranks.rank,
            world_size=ranks.world_size,
            workers=config["workers"],
            backend=config["weight_transfer"],
            folder=Path(config["transfer_dir"]),
            dtype=config["dtype"],
        )
        self.lead = self._build_lead() if ranks.is_lead else None
        self.world = World(
            ranks=ranks,
            learner=self.learner,
            publisher=self.publisher,
            lead=self.lead,
            progress=self.progress,
            commit=self.commit,
        )

    def _link(self):
        from services.scheduler.link import SchedulerLink

        return SchedulerLink(self.config["attempt_id"])

    def _where_to_start(self) -> dict[str, Any]:
        """The newest checkpoint that still is what was committed; damaged ones are marked and reported."""
        from services.weights.checkpoints import CheckpointError, verify

        incarnation = self.link.call("begin_incarnation", os.getpid())
        while (record := self.link.call("latest_checkpoint")) is not None:
            try:
                content = verify(Path(record["path"]), record["manifest_sha256"])
            except CheckpointError as error:
                self.link.call("checkpoint_damaged", record["id"], error.message)
                continue
            self.link.call("forget_evaluations_after", record["stage_index"], record["step"], record["kind"] == "stage")
            return {"incarnation": incarnation, "cursor": content["cursor"], "checkpoint": record["path"], "kind": record["kind"]}
        return {"incarnation": incarnation, "cursor": Cursor().to_dict(), "checkpoint": None, "kind": None}

    def _build_lead(self):
        from services.scheduler.assembly import build_lead

        return build_lead(self)

    # -- the life of the job -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Bring up, then stage after stage."""
        try:
            self._run_stages()
        finally:
            if self.lead is not None:
                self.lead.close()

    def _run_stages(self) -> None:
        self._bring_up()
        while True:
            stage = self.stages[self.progress.cursor.stage_index]
            self._begin_stage(stage)
            if stage.policy is None:
                run_stage(self.world, stage)
            elif not self._at_committed_end:
                self._take_given(stage)
            self._finish_stage(stage)
            if self.progress.cursor.stage_index + 1 == len(self.stages):
                return
            self.progress.begin_next_stage()

    def _bring_up(self) -> None:
        self.ranks.from_lead(self._drain)
        if self.config["dtype"] != "float32":
            self._calibrate_parity()
        if self.checkpoint is not None:
            self.learner.load_state(Path(self.checkpoint))
        publish_and_follow(self.world, Phases(), follow=False)
        self.ranks.from_lead(self._brought_up)

    def _brought_up(self) -> None:
        self.lead.record_bring_up()
        scored = self.parts.evaluations.boundary(0, None, 0)
        self.parts.side_watch.base_row(scored, engines_hold_base=self.checkpoint is None)

    def _drain(self) -> None:
        """Close what the lost incarnation left open and put the teacher where the checkpoint has it."""
        self.publisher.drain()
        if self.parts.teacher is not None and self.checkpoint is not None:
            self.parts.teacher.load(Path(self.checkpoint) / "teacher")
        if self.checkpoint is not None:
            self.parts.side_watch.load(Path(self.checkpoint))
        self.parts.side_watch.rewind(self.progress.cursor.stage_index, self.progress.cursor.step)
        self.parts.log.rewind(self.progress.cursor.global_step)

    def _calibrate_parity(self) -> None:
        """The bound of an engine that was just loaded with the base model; kept for later incarnations of the job."""
        kept = self.run_dir / "parity_bound.json"
        known = self.ranks.from_lead(lambda: json.loads(kept.read_text()) if kept.exists() else None)
        if known is not None:
            if self.lead is not None:
                self.parts.probe.bound_nats = known["bound_nats"]
            return
        for number in range(PARITY_ROUNDS):
            probed = self.ranks.from_lead(lambda number=number: self.parts.probe.sample(number))
            logprobs = self.learner.sequence_logprobs(probed.prompts, probed.completions, temperature=probed.temperature)
            self.ranks.from_lead(lambda probed=probed, logprobs=logprobs: self.parts.probe.calibrate(probed, logprobs))
        self.ranks.from_lead(lambda: write_json(kept, {"bound_nats": self.parts.probe.bound_nats}))

    @property
    def parts(self):
        return self.lead.parts

    def _begin_stage(self, stage) -> None:
        resumed = self.progress.cursor.step > 0 or self._at_committed_end
        if stage.policy is None:
            self.learner.begin_stage(
                stage.composition,
                stage.optimizer,
                temperature=stage.sampling.temperature,
                reset_optimizer=not resumed and stage.boundary.optimizer == "reset",
                truncated_sampling=stage.sampling.is_truncated,
                resumed=resumed,
            )
        self.ranks.from_lead(lambda: self.lead.begin_stage(stage, resumed=resumed, snapshot=self.publisher.last_snapshot))

    def _take_given(self, stage) -> None:
        """Weights that another trainer wrote, in place of training: loaded, handed to the engines, proved.

        Raises ``StopRequested`` where the job is to stop: what came before is committed and nothing of this stage is done.
        """
        from services.scheduler.model_source import check_given

        outcome = self.ranks.from_lead(lambda: self.lead.wanted())
        if outcome != "running":
            raise StopRequested(outcome)
        key = external_key(stage.policy)
        folder, known = Path(self.config["given_folders"][key]), (self.config["resolved"].get("policy_sha256") or {}).get(key)
        self.ranks.from_lead(lambda: check_given(Path(self.config["model_folder"]), folder, known))
        self.learner.take_policy(folder)
        self.progress.advance_given()
        publish_and_follow(self.world, Phases(), follow=False)
        self.ranks.from_lead(lambda: self.lead.record_given())

    @property
    def _at_committed_end(self) -> bool:
        """Whether this incarnation began at the end of the stage that it is in, which is committed already."""
        return self.checkpoint_kind == "stage" and self.progress.cursor == self.cursor

    def _finish_stage(self, stage) -> None:
        folder = self.run_dir / "stages" / f"{stage.index}-{stage.name}" / "policy"
        if not self._at_committed_end:
            self.learner.save_policy(folder)
            self.commit("stage")
        self.ranks.from_lead(lambda: self._close_stage(stage, folder))

    def _close_stage(self, stage, folder: Path) -> None:
        from services.scheduler.reproducibility import write_record

        write_record(folder.parent / "reproducibility.json", self.config, stage, self.progress)
        scored = self.parts.evaluations.boundary(stage.index + 1, stage, self.progress.cursor.global_step)
        self.parts.side_watch.drift(stage, stage.steps, self.progress.cursor.global_step, self.publisher.last_snapshot, scored)
        self.parts.log.checkpoint(
            name=f"{self.job.name}-{stage.name}", uri=str(folder), stage=stage.name, global_step=self.progress.cursor.global_step
        )
        self.parts.log.stage_end(stage.name, stage.index, self.progress.cursor.global_step)
        self.parts.log.commit(self.progress.cursor.global_step)
        self.link.call("stage_finished", stage.index, str(folder), total_steps=stage.steps)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def commit(self, kind: str) -> None:
        """Policy, optimizer, teacher, RNG and cursor at exactly this version, then one store transaction."""
        from services.weights.checkpoints import staging_folder

        root = self.run_dir / "checkpoints"
        staged, checkpoint_id = self.ranks.from_lead(lambda: self._stage_checkpoint(root, staging_folder))
        self.learner.save_state(Path(staged))
        self.ranks.from_lead(lambda: self._seal(root, Path(staged), checkpoint_id, kind))
        self.progress.committed()

    def _stage_checkpoint(self, root: Path, staging_folder) -> tuple[str, str]:
        checkpoint_id = self.link.call("new_checkpoint_id")
        return str(staging_folder(root, checkpoint_id)), checkpoint_id

    def _seal(self, root: Path, staged: Path, checkpoint_id: str, kind: str) -> None:
        from services.weights.checkpoints import prune, seal

        if self.parts.teacher is not None:
            (staged / "teacher").mkdir(exist_ok=True)
            self.parts.teacher.save(staged / "teacher")
        self.parts.side_watch.save(staged)
        cursor = self.progress.cursor
        final = root / checkpoint_id
        digest = seal(staged, final, record={"cursor": cursor.to_dict(), "attempt_id": self.config["attempt_id"]})
        kept = self.link.call(
            "commit_checkpoint",
            id=checkpoint_id,
            stage_index=cursor.stage_index,
            step=cursor.step,
            global_step=cursor.global_step,
            path=str(final),
            manifest_sha256=digest,
            kind=kind,
            policy_version=self.progress.version,
            keep=self.job.checkpoint.keep,
        )
        self.parts.log.commit(cursor.global_step)
        removed = [name for name in prune(root, kept) if not name.startswith(".")]
        if removed:
            self.link.call("checkpoints_removed", removed)
