"""The scheduler: one detached, named Ray actor with a lease in the job store.

It claims queued jobs, starts attempts, watches them, writes the store for them, and feeds MLflow in the background. Another
scheduler that took the lease over is noticed at the next write, which then fails.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from functools import partial
from typing import Any

import ray

from cluster.errors import FencedError
from cluster.settings import NAMESPACE, SCHEDULER_ACTOR, Settings
from services.jobs.states import TERMINAL
from services.jobs.study_records import study_records, this_machine
from services.jobs.study_states import study_status
from services.scheduler.reporting import add_links
from services.tracking.links import study_folder

LEASE_TTL_S = 15.0
LEASE_RENEW_S = 5.0
TICK_S = 0.5
HOUSEKEEPING_S = 3.0

logger = logging.getLogger("holdfast.scheduler")


class SchedulerLoop:
    """The loop without Ray around it."""

    def __init__(self, settings: Settings):
        from services.jobs.store import JobStore
        from services.scheduler.attempt_calls import AttemptCalls
        from services.scheduler.launcher import RayJobLauncher
        from services.scheduler.reconcile import Reconciler
        from services.tracking.sender import Sender

        self.settings = settings
        self.store = JobStore(settings.database)
        self.calls = AttemptCalls(self.store)
        self.sender = Sender(settings.mlflow_url, settings.runs)
        self._holder = f"{os.uname().nodename}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._sent: set[str] = set()
        self._epoch: int | None = None
        self._renewed = 0.0
        self._looked_after = -HOUSEKEEPING_S
        self._reconciler = Reconciler(
            self.store, RayJobLauncher(settings), epoch=self._current_epoch, max_running=settings.max_running_jobs
        )
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="scheduler-loop", daemon=True)

    def _current_epoch(self) -> int:
        if self._epoch is None:
            raise FencedError("this scheduler holds no lease")
        return self._epoch

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                if self._hold_lease():
                    self._reconciler.tick()
                    self._now_and_then()
            except FencedError:
                logger.warning("lost the lease; waiting to take it again")
                self._epoch = None
            except Exception:  # a tick that failed is repeated; the loop must outlive a store or Ray that is away
                logger.exception("scheduler tick failed")
                self._stop.wait(2.0)

    def _now_and_then(self) -> None:
        """What need not be done twice a second."""
        if time.monotonic() - self._looked_after < HOUSEKEEPING_S:
            return
        self._looked_after = time.monotonic()
        self._watch_studies()
        self._watch_runs()
        self._write_cluster_file()

    def _hold_lease(self) -> bool:
        now = time.monotonic()
        if self._epoch is None:
            self._epoch = self.store.acquire_lease(self._holder, LEASE_TTL_S)
            self._renewed = now
        elif now - self._renewed > LEASE_RENEW_S:
            if not self.store.renew_lease(self._holder, self._epoch, LEASE_TTL_S):
                self._epoch = None
            self._renewed = now
        return self._epoch is not None

    def _watch_runs(self) -> None:
        """Every job whose log MLflow has not seen to its end; the sender keeps its own place in each log."""
        for job_id, status in self.store.job_states().items():
            if job_id in self._sent or status == "queued":
                continue
            if status in TERMINAL or status == "paused":
                shutil.rmtree(self.settings.transfer / job_id, ignore_errors=True)  # publications, in shared memory
            run_dir = self.settings.run_dir(job_id)
            if not run_dir.is_dir():
                continue
            if not self.sender.update(job_id, status):
                job = self.store.get_job(job_id)
                self.sender.watch(job_id, run_dir, job.name, job.spec, status, place=self.store.place_in_study(job_id))
            if status in TERMINAL and self.sender.is_done(run_dir):
                self._sent.add(job_id)
                add_links(run_dir, self.settings.mlflow_url)

    def _watch_studies(self) -> None:
        """Every study, for its run in MLflow; the sender looks at a study's records only when a report is due."""
        after = None
        while True:
            studies, more = self.store.list_studies(after=after, limit=100, order="asc")
            for study in studies:
                status, ended = study_status(study.counts), sum(study.counts.get(name, 0) for name in TERMINAL)
                folder = study_folder(self.settings.home.absolute(), study.id)
                self.sender.watch_study(study, status, ended, folder, partial(self._records, study))
            if not more:
                return
            after = studies[-1].id

    def _records(self, study: Any) -> list[dict[str, Any]]:
        machine = this_machine(ray.cluster_resources().get("GPU", 0.0))
        members, kept = self.store.study_members(study.id), self.store.kept_records(study.id)
        return study_records(study.name, members, kept, runs=self.settings.runs, machine=machine)

    def _write_cluster_file(self) -> None:
        """What the API tells about the cluster; it does not talk to Ray itself."""
        path = self.settings.home / "cluster.json"
        if path.exists() and time.time() - path.stat().st_mtime < 30:
            return
        resources = ray.cluster_resources()
        content = {"cpus": resources.get("CPU", 0.0), "gpus": resources.get("GPU", 0.0), "nodes": len(ray.nodes())}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content))
        temporary.replace(path)

    def stop(self) -> None:
        self._stop.set()
        self.sender.stop()
        if self._epoch is not None:
            self.store.release_lease(self._holder, self._epoch)


class Scheduler:
    """The Ray side: attempts call ``attempt_call``; nothing else is public."""

    def __init__(self, settings_json: str):
        logging.basicConfig(level=logging.INFO)
        self._loop = SchedulerLoop(Settings.model_validate_json(settings_json))
        self._loop.sender.start()
        self._loop.thread.start()

    def attempt_call(self, attempt_id: str, method: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run one method of ``AttemptCalls``; names that begin with an underscore are refused."""
        if method.startswith("_"):
            raise ValueError(f"{method!r} is not a call of an attempt")
        return getattr(self._loop.calls, method)(attempt_id, *args, **kwargs)

    def ping(self) -> int:
        return os.getpid()

    def stop(self) -> None:
        self._loop.stop()


def ensure_scheduler(settings: Settings):
    """The scheduler's handle; starts it if it is not there. Call in a process that is connected to Ray."""
    actor = ray.remote(Scheduler).options(
        name=SCHEDULER_ACTOR,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        num_cpus=0,
        max_concurrency=32,
    )
    handle = actor.remote(settings.model_dump_json())
    ray.get(handle.ping.remote(), timeout=60)
    return handle
