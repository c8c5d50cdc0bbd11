"""The driver of one attempt, run as a Ray job: ``python -m services.scheduler.attempt ATTEMPT_ID``.

It reserves the cluster's share, starts the rollout workers and the teacher once, and runs the learner group as one
``TorchTrainer.fit()``. Everything that it creates dies with it.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

from cluster.errors import LOST_REASONS, FencedError, HoldfastError
from cluster.placement import Layout, plan_layout, reserve
from cluster.settings import NAMESPACE, Settings
from cluster.spec.job import JobSpec
from services.jobs.model_files import folder_sha256
from services.scheduler.link import SchedulerLink
from services.weights.checkpoints import file_sha256

MAX_LEARNER_RESTARTS = 3
ACTOR_START_DEADLINE_S = 240.0


def main(attempt_id: str) -> int:
    """Run the attempt and record how it ended. Exit code 0 when the outcome could be recorded."""
    import ray

    ray.init(address="auto", namespace=NAMESPACE, log_to_driver=True)
    link = SchedulerLink(attempt_id)
    try:
        outcome = Attempt(attempt_id, link, Settings()).run()
    except FencedError as error:
        print(f"attempt {attempt_id} was replaced: {error.message}", flush=True)
        return 1
    except HoldfastError as error:
        traceback.print_exc()
        outcome = {
            "outcome": "lost" if error.reason in LOST_REASONS else "failed",
            "reason": error.reason,
            "message": error.message,
        }
    except Exception as error:  # the driver's own end: whatever it was must reach the job's row
        traceback.print_exc()
        outcome = {"outcome": "lost", "reason": "attempt_crashed", "message": f"{type(error).__name__}: {error}"[:2000]}
    link.call("finish", outcome["outcome"], outcome["reason"], outcome["message"])
    print(f"attempt {attempt_id}: {outcome}", flush=True)
    return 0



class Attempt:
    """Actors of one attempt, in the order in which they are needed."""

    def __init__(self, attempt_id: str, link: SchedulerLink, settings: Settings):
        described = link.call("describe")
        self.attempt_id = attempt_id
        self.link = link
        self.settings = settings
        self.job_id: str = described["job_id"]
        self.resolved: dict[str, Any] = described["resolved"]
        self.job = JobSpec.model_validate(described["spec"])
        self.run_dir = settings.run_dir(self.job_id)
        self.run_dir.mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, Any]:
        import ray

        from services.scheduler.model_source import local_folder

        self._check_nodes(sum(node["Alive"] for node in ray.nodes()))
        check_data_files(self.resolved)
        check_model_folders(self.resolved)
        compute = self.job.compute
        needs_teacher = any(stage.composition.needs_scorer for stage in self.job.resolved_stages())
        layout = plan_layout(
            compute.device,
            rollout_workers=compute.rollout_workers,
            learners=compute.learners,
            teachers=int(needs_teacher),
            cluster=ray.cluster_resources(),
            jobs_at_once=self.settings.max_running_jobs,
        )
        folder = local_folder(self.job.model, self.resolved)
        group = reserve(
            layout, deadline_s=compute.wait_for_resources_s, report=lambda message: self.link.call("waiting", message)
        )
        self.link.call("mark_running")
        workers, teachers = self._start_actors(layout, group, folder)
        outcome = self._fit(layout, folder, workers, teachers)
        self._write_report()
        return outcome

    def _check_nodes(self, num_nodes: int) -> None:
        """SQLite and a local home mean one node."""
        if num_nodes > 1 and self.settings.database.startswith("sqlite"):
            raise HoldfastError(
                f"the cluster has {num_nodes} nodes and the job store is SQLite, which means one node: set HOLDFAST_DATABASE_URL to "
                "PostgreSQL and HOLDFAST_HOME to storage that every node shares",
                reason="single_node_store",
            )

    def dtype(self, layout: Layout) -> str:
        wanted = self.job.model.dtype
        return ("float32" if layout.device == "cpu" else "bfloat16") if wanted == "auto" else wanted

    def weight_transfer(self, layout: Layout) -> str:
        wanted = self.job.compute.weight_transfer
        return layout.weight_transfer if wanted == "auto" else wanted

    def _start_actors(self, layout: Layout, group: Any, folder: Path) -> tuple[list, list]:
        from rollout.pool import RolloutPool
        from services.scheduler.model_source import external_folders, max_model_len
        from services.teacher.group import TeacherGroup

        stages = self.job.resolved_stages()
        pool = RolloutPool.create(
            layout.rollout_workers,
            options={
                "model_folder": str(folder),
                "dtype": self.dtype(layout),
                "device": layout.device,
                "max_model_len": max_model_len(self.job, folder),
                "seed": self.job.seed,
                "weight_transfer": self.weight_transfer(layout),
                "max_logprobs": max(stage.composition.rollout_support_k for stage in stages),
                "threads": layout.threads,
                "gpu_memory_utilization": layout.engine_memory_fraction,
            },
            placement_group=group,
            num_gpus=layout.rollout_gpus,
        )
        teachers: list = []
        if layout.teachers:
            teachers = TeacherGroup.create(
                layout.teachers,
                model_folder=str(folder),
                external_folders=external_folders(stages, self.resolved),
                device=layout.device,
                threads=layout.threads,
                dtype=self.dtype(layout),
                placement_group=group,
                first_bundle=layout.rollout_workers,
                num_gpus=layout.teacher_gpus,
            ).handles
        pool.wait_until_ready(ACTOR_START_DEADLINE_S)
        return pool.workers, teachers

    def _fit(self, layout: Layout, folder: Path, workers: list, teachers: list) -> dict[str, Any]:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from services.scheduler.model_source import given_folders
        from services.scheduler.train_function import train_function

        config = {
            "attempt_id": self.attempt_id,
            "job_id": self.job_id,
            "spec": self.job.model_dump_json(),
            "resolved": self.resolved,
            "run_dir": str(self.run_dir),
            "model_folder": str(folder),
            "given_folders": given_folders(self.job.resolved_stages(), self.resolved),
            "device": layout.device,
            "dtype": self.dtype(layout),
            "weight_transfer": self.weight_transfer(layout),
            "transfer_dir": str(self.settings.transfer / self.job_id),
            "threads": layout.threads,
            "workers": workers,
            "teachers": teachers,
        }
        trainer = TorchTrainer(
            train_function,
            train_loop_config=config,
            torch_config=TorchConfig(backend="gloo" if layout.device == "cpu" else "nccl"),
            scaling_config=ScalingConfig(
                num_workers=layout.learners, use_gpu=layout.learner_gpus > 0, resources_per_worker=layout.learner_resources()
            ),
            run_config=RunConfig(
                name=self.attempt_id,
                storage_path=str(self.run_dir / "ray_train"),
                failure_config=FailureConfig(max_failures=MAX_LEARNER_RESTARTS, controller_failure_limit=3),
                worker_runtime_env={"env_vars": {"OMP_NUM_THREADS": str(max(1, layout.threads // layout.learners))}},
            ),
        )
        return trainer.fit().return_value

    def _write_report(self) -> None:
        from services.scheduler.reporting import write_report

        write_report(self.link.call("report_source"), self.run_dir, self.settings.runs, mlflow_url=self.settings.mlflow_url)


def check_data_files(resolved: dict[str, Any]) -> None:
    """Every data file is still the one that was submitted. Raises ``HoldfastError`` ``dataset_changed``."""
    for name, found in (resolved.get("datasets") or {}).items():
        path, known = found.get("path"), found.get("sha256")
        if path is None or known is None:
            continue
        if not Path(path).is_file() or file_sha256(Path(path)) != known:
            raise HoldfastError(f"data file {name!r} is not the one that was submitted (sha256 {known[:12]}...)", reason="dataset_changed")


def check_model_folders(resolved: dict[str, Any]) -> None:
    """The base model, the teachers and the embedding model of this machine are still those that were submitted.

    Given checkpoints are looked at when their stage begins. Raises ``HoldfastError`` ``model_changed``.
    """
    hashes, embedding = resolved.get("teacher_sha256") or {}, resolved.get("embedding") or {}
    found = [("base model", resolved.get("model_path"), resolved.get("model_sha256"))]
    found += [(f"teacher {key!r}", folder, hashes.get(key)) for key, folder in (resolved.get("teachers") or {}).items()]
    found.append(("embedding model", embedding.get("model_path"), embedding.get("model_sha256")))
    for name, folder, known in found:
        if folder is None or known is None:
            continue
        # of a folder that is gone there are no files, whose hash is another one, too
        if folder_sha256(Path(folder)) != known:
            raise HoldfastError(f"the {name} in {folder} is not the one that was submitted (sha256 {known[:12]}...)", reason="model_changed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
