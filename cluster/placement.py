"""Who gets which share of the cluster, written down before anything is started.

On a CPU machine Ray's CPUs are bookkeeping, not threads: every role takes one logical CPU and a thread count of its own.
With GPUs each role has its own, unless there is one alone, which is shared by fixed fractions.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from cluster.errors import ResourceError


@dataclass(frozen=True, slots=True)
class Layout:
    """The shares of one attempt."""

    device: str
    """``cpu`` or ``cuda``."""
    rollout_workers: int
    learners: int
    teachers: int
    rollout_gpus: float
    learner_gpus: float
    teacher_gpus: float
    engine_memory_fraction: float
    """Of one GPU, for the engine's weights and KV cache."""
    threads: int
    """Of each process on a CPU machine. The roles of a job take turns, so each may use every core that is its job's."""

    def bundles(self) -> list[dict[str, float]]:
        """Rollout workers first, then teachers; the learners' own group is made by Ray Train."""
        return [_bundle(self.rollout_gpus)] * self.rollout_workers + [_bundle(self.teacher_gpus)] * self.teachers

    def learner_resources(self) -> dict[str, float]:
        return _bundle(self.learner_gpus)

    def total(self) -> dict[str, float]:
        roles = self.rollout_workers + self.teachers + self.learners
        gpus = self.rollout_workers * self.rollout_gpus + self.teachers * self.teacher_gpus + self.learners * self.learner_gpus
        return {"CPU": float(roles), "GPU": gpus}

    @property
    def weight_transfer(self) -> str:
        """The backend that ``auto`` stands for."""
        if self.device == "cpu":
            return "shared_memory"
        return "ipc" if self.rollout_gpus < 1 else "nccl"


def _bundle(gpus: float) -> dict[str, float]:
    return {"CPU": 1.0, "GPU": gpus} if gpus else {"CPU": 1.0}


def plan_layout(
    device: str, *, rollout_workers: int, learners: int, teachers: int, cluster: dict[str, float], jobs_at_once: int = 1
) -> Layout:
    """Turn a request into shares, or raise ``ResourceError`` saying what is needed and what was found.

    ``cluster`` is Ray's total resources. One GPU alone: engine 0.45, teacher 0.15, learner 0.4 of it. Without GPUs the cores are
    divided among the ``jobs_at_once`` that the service runs: threads of two jobs on one core wait for each other.
    """
    gpus = int(cluster.get("GPU", 0))
    device = ("cuda" if gpus else "cpu") if device == "auto" else device
    cores = os.cpu_count() or 1
    if device == "cpu":
        layout = Layout(device, rollout_workers, learners, teachers, 0.0, 0.0, 0.0, 0.0, max(1, cores // jobs_at_once))
    elif gpus == 1 and rollout_workers == 1 and learners == 1:
        layout = Layout(device, 1, 1, teachers, 0.45, 0.4, 0.15, 0.4, cores)
    elif gpus == rollout_workers + learners and teachers:
        # no GPU is left for the teacher: it shares one with a learner, which waits while the teacher scores
        layout = Layout(device, rollout_workers, learners, teachers, 1.0, 0.7, 0.3, 0.85, cores)
    else:
        layout = Layout(device, rollout_workers, learners, teachers, 1.0, 1.0, 1.0, 0.85, cores)
    for resource, needed in layout.total().items():
        found = cluster.get(resource, 0.0)
        if needed > found:
            raise ResourceError(
                f"the job needs {needed:g} {resource} ({rollout_workers} rollout worker(s), {learners} learner(s), "
                f"{teachers} teacher(s)), the cluster has {found:g}",
                details={"resource": resource, "needed": needed, "found": found},
            )
    return layout


def reserve(layout: Layout, *, deadline_s: float, report=lambda message: None):
    """Reserve the bundles of rollout workers and teachers; says what is missing while it waits.

    Returns a Ray placement group. Raises ``ResourceError`` at the deadline.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group(layout.bundles(), strategy="PACK")
    started = time.monotonic()
    while not group.wait(timeout_seconds=5):
        waited = time.monotonic() - started
        available = ray.available_resources()
        needs = layout.total()
        found = {name: available.get(name, 0.0) for name in needs}
        report(f"waiting for resources for {waited:.0f} s: needs {needs}, free {found}")
        if waited > deadline_s:
            remove_placement_group(group)
            raise ResourceError(
                f"no room in the cluster after {waited:.0f} s: needs {needs}, free {found}",
                details={"needed": needs, "found": found},
            )
    return group
