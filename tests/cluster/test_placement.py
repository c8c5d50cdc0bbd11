"""Shares of a cluster: CPU bookkeeping, one GPU alone, a teacher beside a learner, one GPU a role, and what does not fit."""

from __future__ import annotations

import pytest

from cluster.errors import ResourceError
from cluster.placement import plan_layout


def layout(gpus: int, *, cpus: int = 16, device: str = "auto", rollout_workers: int = 1, learners: int = 1, teachers: int = 1):
    cluster = {"CPU": cpus, "GPU": gpus}
    return plan_layout(device, rollout_workers=rollout_workers, learners=learners, teachers=teachers, cluster=cluster)


@pytest.mark.parametrize(
    ("gpus", "workers", "learners", "shares", "transfer"),
    [
        (0, 1, 1, (0, 0, 0), "shared_memory"),
        (1, 1, 1, (0.45, 0.4, 0.15), "ipc"),
        (2, 1, 1, (1, 0.7, 0.3), "nccl"),
        (3, 1, 1, (1, 1, 1), "nccl"),
        (4, 2, 2, (1, 0.7, 0.3), "nccl"),
        (8, 4, 3, (1, 1, 1), "nccl"),
    ],
)
def test_each_role_gets_its_share(gpus, workers, learners, shares, transfer):
    found = layout(gpus, rollout_workers=workers, learners=learners)
    assert (found.rollout_gpus, found.learner_gpus, found.teacher_gpus) == shares
    assert found.total()["GPU"] <= gpus + 1e-9
    assert found.weight_transfer == transfer
    assert len(found.bundles()) == workers + 1


@pytest.mark.parametrize(
    ("arguments", "resource", "needed"), [({"gpus": 1, "learners": 2}, "GPU", 4), ({"gpus": 0, "cpus": 2}, "CPU", 3), ({"gpus": 0, "device": "cuda"}, "GPU", 3)]
)
def test_what_does_not_fit_is_named(arguments, resource, needed):
    with pytest.raises(ResourceError, match=f"needs {needed} {resource}") as raised:
        layout(**arguments)
    assert raised.value.details["resource"] == resource


@pytest.mark.parametrize(("cores", "jobs_at_once", "threads"), [(2, 1, 2), (2, 2, 1), (16, 3, 5), (2, 8, 1)])
def test_jobs_that_run_at_once_divide_the_cores_of_a_cpu_machine(monkeypatch, cores, jobs_at_once, threads):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    found = plan_layout("cpu", rollout_workers=1, learners=1, teachers=0, cluster={"CPU": 16}, jobs_at_once=jobs_at_once)
    assert found.threads == threads
