"""What ``up`` and ``down`` do.

Invariant: the calling process never imports ray. What needs a connection to the cluster runs in a short-lived child
(``python -m api.launcher deploy|withdraw``), so that the command line stays quick and a hanging cluster cannot hang it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import psutil

from api import processes
from api.ports import check_ports, is_loopback
from cluster import session
from cluster.errors import HoldfastError
from cluster.settings import SCHEDULER_ACTOR, Settings

DEPLOY_DEADLINE_S = 150.0
WITHDRAW_DEADLINE_S = 20.0
READY_DEADLINE_S = 60.0
MLFLOW_DEADLINE_S = 90.0
LOCK_DEADLINE_S = 180.0

Step = Callable[[str], AbstractContextManager["Detail"]]


@dataclass(slots=True)
class Detail:
    """Filled by a step while it runs; what is shown behind its name."""

    text: str = ""


@contextlib.contextmanager
def silent_step(title: str) -> Iterator[Detail]:
    """A step that nobody watches."""
    yield Detail()


@dataclass(slots=True)
class Parts:
    """Which parts answer."""

    ray: bool
    mlflow: bool
    api: bool
    scheduler: bool

    @property
    def all(self) -> bool:
        return self.ray and self.mlflow and self.api and self.scheduler

    @property
    def any(self) -> bool:
        return self.ray or self.mlflow or self.api


@dataclass(slots=True)
class Launcher:
    """Starts and stops one installation."""

    settings: Settings
    step: Step = silent_step
    new_api_key: str | None = field(default=None, init=False)
    """The key that this ``up`` made; shown once."""

    # -- up ----------------------------------------------------------------------------------------------------------

    def up(self, *, expose: bool = False) -> bool:
        """Start what does not run. False where everything ran already. Raises ``HoldfastError``."""
        settings = self.settings
        if not is_loopback(settings.api_host) and not expose:
            raise HoldfastError(
                f"HOLDFAST_API_HOST is {settings.api_host}, which other machines can reach; say so with --expose. The key is the only guard "
                "and it travels unencrypted: put a proxy with TLS in front",
                reason="not_loopback",
            )
        settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._lock():
            parts = self.parts()
            if parts.all:
                return False
            self._start_database()
            settings.logs.mkdir(parents=True, exist_ok=True)
            with self._leave_nothing_half_started(parts):
                if settings.ray_address is None and not parts.ray:
                    self._clear_the_way()
                    parts.mlflow = False  # whatever ran under a dead cluster has been swept with it
                mlflow = None if parts.mlflow else self._start_mlflow()
                if settings.ray_address is None and not parts.ray:
                    self._start_ray()
                self._deploy()
                self._wait_for_mlflow(mlflow)
                self._record()
        return True

    @contextlib.contextmanager
    def _leave_nothing_half_started(self, before: Parts) -> Iterator[None]:
        """A start from nothing that fails ends what it began; a repair that fails leaves what ran before."""
        try:
            yield
        except BaseException:
            if not before.any:
                self._keep_ray_logs()
                processes.sweep(self.settings)
            raise

    def parts(self) -> Parts:
        """Ask every part, by its own front door."""
        checks = self._checks()
        return Parts(
            ray=self._ray_answers(),
            mlflow=self._mlflow_answers(),
            api=checks.get("store") == "ok",
            scheduler=checks.get("scheduler") == "ok",
        )

    def _start_database(self) -> None:
        """Migrate the store and make the first key. The store is the truth, so it comes before everything else."""
        from services.jobs.store import JobStore

        with self.step("Job store") as detail:
            store = JobStore(self.settings.database)
            try:
                store.migrate()
                self.new_api_key = ensure_api_key(self.settings, store)
            finally:
                store.close()
            detail.text = self.settings.database.split("://", 1)[0].split("+")[0]

    def _clear_the_way(self) -> None:
        """End what an earlier run left behind, so that the ports are ours to take. Raises ``HoldfastError`` ``port_taken``."""
        settings = self.settings
        if processes.own_processes(settings):
            with self.step("Earlier run") as detail:
                detail.text = f"{processes.sweep(settings)} processes ended"
        self._clear_shared_folders()
        check_ports(settings, ("Ray", *(("MLflow",) if settings.mlflow_uri is None else ()), "API"))
        settings.ray_temp_dir.mkdir(mode=0o700)
        session.temporary_folder(settings).mkdir()

    def _start_ray(self) -> None:
        settings = self.settings
        with self.step("Ray head") as detail:
            settings.transfer.mkdir(parents=True, exist_ok=True, mode=0o700)
            session.start_head(settings, log=settings.logs / "ray.log")
            self._record()
            detail.text = f"{session.ray_address(settings)}, {settings.logical_cpus} logical CPUs, dashboard {session.jobs_api_url(settings)} with a token"

    def _start_mlflow(self) -> subprocess.Popen | None:
        """Our own MLflow in a process group of its own; its start is waited for later, when the rest has started."""
        from services.tracking import server

        settings = self.settings
        if settings.mlflow_uri is not None:
            return None
        processes.end(self._by_role("mlflow"), grace_s=5.0)
        check_ports(settings, ("MLflow",))
        environment = {**os.environ, **session.service_environment(settings), **server.server_environment(settings.home.absolute())}
        with (settings.logs / "mlflow.log").open("ab") as output:
            return subprocess.Popen(
                server.server_command(settings.home.absolute(), settings.mlflow_port),
                env=environment,
                cwd=settings.logs,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_for_mlflow(self, child: subprocess.Popen | None) -> None:
        from services.tracking import server

        url, log = self.settings.mlflow_url, self.settings.logs / "mlflow.log"
        with self.step("MLflow") as detail:
            detail.text = url
            deadline = time.monotonic() + MLFLOW_DEADLINE_S
            while not server.is_healthy(url):
                if self.settings.mlflow_uri is not None:
                    detail.text += " does not answer now; metrics are kept and sent later"
                    return
                if child is not None and child.poll() is not None:
                    raise HoldfastError(f"MLflow ended with status {child.returncode}: {last_line(log)} (all of it in {log})", reason="start_failed")
                if time.monotonic() > deadline:
                    raise HoldfastError(f"MLflow does not answer at {url} after {MLFLOW_DEADLINE_S:g} s; see {log}", reason="start_failed")
                time.sleep(0.2)

    def _deploy(self) -> None:
        """Scheduler and API, both by a child that is connected to Ray; both calls change nothing where they run already."""
        with self.step("Scheduler and API") as detail:
            self._child("deploy", DEPLOY_DEADLINE_S)
            deadline = time.monotonic() + READY_DEADLINE_S
            while not {"store", "scheduler"} <= {name for name, state in self._checks().items() if state == "ok"}:
                if time.monotonic() > deadline:
                    raise HoldfastError(
                        f"the API does not become ready at {self.settings.api_url}: {self._checks()}; see {self.settings.logs / 'deploy.log'} and {session.ray_folder(self.settings)}",
                        reason="api_not_ready",
                    )
                time.sleep(0.2)
            detail.text = self.settings.api_url

    # -- down --------------------------------------------------------------------------------------------------------

    def down(self) -> bool:
        """Stop everything and leave nothing outside ``home``. False where nothing ran. Unfinished jobs keep their rows."""
        settings = self.settings
        if not settings.home.exists():
            return False
        with self._lock():
            running = bool(processes.own_processes(settings))
            if self._ray_answers() and (running or settings.ray_address is not None):
                with self.step("API and scheduler") as detail:
                    detail.text = "closed" if self._withdraw() else "did not close in time; ended with the rest"
            if running:
                with self.step("Ray and MLflow") as detail:
                    self._keep_ray_logs()
                    count = processes.sweep(settings)
                    detail.text = f"{count} processes ended"
            self._clear_shared_folders()
            for path in (processes.state_file(settings), settings.home / "cluster.json"):
                path.unlink(missing_ok=True)
            left = processes.own_processes(settings)
            if left:
                raise HoldfastError(f"processes that cannot be ended: {[process.pid for process in left]}", reason="processes_left")
            return running

    def _withdraw(self) -> bool:
        try:
            self._child("withdraw", WITHDRAW_DEADLINE_S)
        except HoldfastError:
            return False
        return True

    def _keep_ray_logs(self) -> None:
        """The output of attempts and of Ray itself, out of the folder that is about to go."""
        target = self.settings.logs / "attempts"
        target.mkdir(parents=True, exist_ok=True)
        for path in session.ray_folder(self.settings).glob("session_2*/logs/job-driver-*.log"):
            with contextlib.suppress(OSError):
                shutil.copyfile(path, target / path.name)
        for name in ("gcs_server.out", "gcs_server.err", "raylet.out", "raylet.err", "dashboard.log", "dashboard.err"):
            for path in session.ray_folder(self.settings).glob(f"session_2*/logs/{name}"):
                with contextlib.suppress(OSError):
                    shutil.copyfile(path, self.settings.logs / f"ray-{name}")

    def _clear_shared_folders(self) -> None:
        """What lies outside ``home`` under this installation's own name."""
        if self.settings.ray_address is None:
            shutil.rmtree(self.settings.ray_temp_dir, ignore_errors=True)
        if self.settings.transfer_dir is None:
            shutil.rmtree(self.settings.transfer, ignore_errors=True)
        (self.settings.home / "cluster.json").unlink(missing_ok=True)

    # -- looking -----------------------------------------------------------------------------------------------------

    def _ray_answers(self) -> bool:
        """Of our own cluster: the recorded processes live, and the Jobs API lets us in."""
        if self.settings.ray_address is not None:
            return True
        recorded = [item for item in processes.read_state(self.settings) if item.role.startswith("ray-")]
        living = [item for item in recorded if processes.alive(self.settings, item)]
        return bool(recorded) and len(living) == len(recorded) and session.jobs_api_status(self.settings) == 200

    def _mlflow_answers(self) -> bool:
        from services.tracking.server import is_healthy

        if self.settings.mlflow_uri is None and not self._by_role("mlflow"):
            return False  # what answers there is not ours
        return is_healthy(self.settings.mlflow_url)

    def _by_role(self, role: str) -> list[psutil.Process]:
        living = [processes.alive(self.settings, item) for item in processes.read_state(self.settings) if item.role == role]
        return [process for process in living if process is not None]

    def _checks(self) -> dict[str, str]:
        """What /readyz says of each part; empty where nothing answers, or where what answers does not know our key."""
        try:
            key = self.settings.api_key_file.read_text(encoding="utf-8").strip()
            ours = urllib.request.Request(f"{self.settings.api_url}/version", headers={"Authorization": f"Bearer {key}"})
            with urllib.request.urlopen(ours, timeout=3.0):
                pass
            with urllib.request.urlopen(f"{self.settings.api_url}/readyz", timeout=3.0) as answer:
                return json.load(answer)["checks"]
        except (OSError, ValueError, KeyError):
            return {}

    # -- inside ------------------------------------------------------------------------------------------------------

    def _record(self) -> None:
        """Write down the processes that the service consists of, so that a later call can tell them from strangers."""
        found = []
        for process in processes.roots(processes.own_processes(self.settings)):
            with contextlib.suppress(psutil.Error):
                found.append(processes.Recorded.of(processes.role_of(process), process))
        processes.write_state(self.settings, found)

    def _child(self, verb: str, timeout_s: float) -> None:
        """Run ``python -m api.launcher VERB`` with the service's environment. Raises ``HoldfastError``."""
        settings = self.settings
        settings.logs.mkdir(parents=True, exist_ok=True)
        log = settings.logs / f"{verb}.log"
        environment = {**os.environ, **session.service_environment(settings)}
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "api.launcher", verb],
                env=environment,
                cwd=settings.logs,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = child.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                raise HoldfastError(f"{verb} did not end within {timeout_s:g} s; see {log}", reason="cluster_hangs") from None
        if status != 0:
            raise HoldfastError(f"{verb} failed: {last_line(log)} (all of it in {log})", reason="deploy_failed")

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One ``up`` or ``down`` at a time."""
        with (self.settings.home / "service.lock").open("w") as file:
            deadline = time.monotonic() + LOCK_DEADLINE_S
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise HoldfastError("another holdfast up or down is at work and does not end", reason="locked") from None
                    time.sleep(0.2)
            yield


def ensure_api_key(settings: Settings, store: Any) -> str | None:
    """Make a key where the key file is missing or its key is not the store's; returns the new one."""
    path = settings.api_key_file
    with contextlib.suppress(OSError):
        if store.verify_api_key(path.read_text(encoding="utf-8").strip()):
            return None
    path.unlink(missing_ok=True)
    key = store.create_api_key("first start")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(key + "\n")
    return key


def last_line(log: Any) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


# -- the child that is connected to Ray -------------------------------------------------------------------------------


def deploy(settings: Settings) -> None:
    """Scheduler first, so that the API finds its cluster file."""
    session.connect(settings)
    from api import serve
    from services.scheduler.actor import ensure_scheduler

    ensure_scheduler(settings)
    serve.deploy(settings)


def withdraw(settings: Settings) -> None:
    """No new requests, then no new attempts; the scheduler gives its lease back."""
    session.connect(settings)
    from api import serve

    serve.shut_down()
    session.stop_actor(SCHEDULER_ACTOR, stop_timeout_s=5.0)


def main() -> None:
    verbs = {"deploy": deploy, "withdraw": withdraw}
    verbs[sys.argv[1]](Settings())


if __name__ == "__main__":
    main()
