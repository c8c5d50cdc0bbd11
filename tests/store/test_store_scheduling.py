"""The lease, the claims of schedulers, and the fences around them."""

from __future__ import annotations

import multiprocessing
import threading

import pytest

from cluster.errors import FencedError, IllegalTransition, NotFound
from services.jobs.store import JobStore
from tests.store.conftest import job_spec


def test_one_holder_at_a_time_and_epochs_only_grow(open_store):
    clock = [100.0]
    a, b = open_store(lease_clock=lambda: clock[0]), open_store(lease_clock=lambda: clock[0])
    first = a.acquire_lease("a", 15)
    assert first == 1 and b.acquire_lease("b", 15) is None
    clock[0] = 110
    assert a.renew_lease("a", first, 15)
    clock[0] = 124
    assert b.acquire_lease("b", 15) is None
    clock[0] = 126
    second = b.acquire_lease("b", 15)
    assert second == 2 and not a.renew_lease("a", first, 15)
    b.release_lease("b", second)
    assert a.acquire_lease("a", 15) == 3
    b.release_lease("b", second)
    assert a.renew_lease("a", 3, 15), "an old release must not end the new lease"


def test_a_lease_of_before_a_reboot_is_over(store, monkeypatch, backend):
    if backend != "sqlite":
        pytest.skip("PostgreSQL's own clock does not restart")
    assert store.acquire_lease("a", 10_000) == 1
    assert store.acquire_lease("b", 10) is None
    monkeypatch.setattr("services.jobs.connection._boot_id", lambda: "another boot")
    assert store.acquire_lease("b", 10) == 2


def test_writes_of_a_replaced_scheduler_change_nothing(open_store):
    clock = [0.0]
    old, new = open_store(lease_clock=lambda: clock[0]), open_store(lease_clock=lambda: clock[0])
    job = old.create_job(job_spec(), resolved={}, idempotency_key=None, request_hash="h")[0]
    epoch = old.acquire_lease("old", 15)
    attempt = old.start_attempt(job.id, epoch=epoch)
    clock[0] = 20
    assert new.acquire_lease("new", 15) == epoch + 1
    before = new.get_job(job.id)
    for write in (
        lambda: old.transition(job.id, "failed", epoch=epoch),
        lambda: old.end_attempt(attempt.id, epoch=epoch, exit_reason="lost", message="x"),
        lambda: old.start_attempt(job.id, epoch=epoch),
    ):
        with pytest.raises(FencedError):
            write()
    assert new.get_job(job.id) == before and new.list_attempts(job.id)[0].ended_at is None


def _claim_all(url: str, name: str, results) -> None:
    store = JobStore(url)
    claimed = []
    try:
        while True:
            epoch = store.acquire_lease(name, 0.02)
            if epoch is None:
                if store.next_queued() is None:
                    break
                continue
            while (job := store.next_queued()) is not None:
                try:
                    claimed.append((job.id, store.start_attempt(job.id, epoch=epoch).number))
                except FencedError:
                    break
                except IllegalTransition:
                    continue
            else:
                break
    finally:
        store.close()
        results.put(claimed)


def test_four_schedulers_in_four_processes_claim_every_job_once(store, url):
    ids = {store.create_job(job_spec(f"job{number}"), resolved={}, idempotency_key=None, request_hash="h")[0].id for number in range(40)}
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_claim_all, args=(url, f"s{number}", results)) for number in range(4)]
    for process in processes:
        process.start()
    claimed = [entry for _ in processes for entry in results.get(timeout=100)]
    for process in processes:
        process.join(20)
    assert sorted(claimed) == sorted((job_id, 1) for job_id in ids)
    assert {job.status for job in store.jobs_in(["starting"])} == {"starting"} and len(store.jobs_in(["starting"])) == 40


def test_four_threads_race_for_the_first_lease(open_store):
    stores = [open_store() for _ in range(4)]
    barrier, epochs = threading.Barrier(4), []

    def race(number: int) -> None:
        barrier.wait(10)
        epochs.append(stores[number].acquire_lease(f"s{number}", 60))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(epoch is not None for epoch in epochs) == [False, False, False, True]


def test_the_queue_is_first_in_first_out_and_a_requeued_job_keeps_its_place(store, make_job):
    first, second = make_job("first"), make_job("second")
    epoch = store.acquire_lease("s", 60)
    assert store.next_queued().id == first.id
    store.start_attempt(first.id, epoch=epoch)
    assert store.next_queued().id == second.id
    store.transition(first.id, "queued", epoch=epoch, reason="cluster_lost", message="gone")
    assert store.next_queued().id == first.id
    assert [job.id for job in store.jobs_in(["queued"])] == [first.id, second.id]


def test_a_lost_job_goes_where_its_user_wants_it_by_now(store, make_job):
    epoch = store.acquire_lease("s", 60)
    for request, status in ((store.request_cancel, "cancelled"), (store.request_pause, "paused"), (None, "queued")):
        job = make_job(f"to-{status}")
        attempt = store.start_attempt(job.id, epoch=epoch)
        if request is not None:
            request(job.id)
        store.end_attempt(attempt.id, epoch=epoch, exit_reason="cluster_lost", message="gone")
        assert store.transition(job.id, "queued", epoch=epoch, reason="cluster_lost").status == status


def test_a_job_that_leaves_the_cluster_ends_its_attempt_and_settles_its_stages(store, make_job):
    epoch = store.acquire_lease("s", 60)
    job = make_job()
    attempt = store.start_attempt(job.id, epoch=epoch)
    store.mark_running(attempt.id)
    store.set_stage(attempt.id, 0, status="running", step=3, total_steps=10)
    back = store.transition(job.id, "queued", epoch=epoch, reason="driver_lost", message="gone")
    assert [(stage.status, stage.step) for stage in back.stages] == [("queued", 3), ("queued", 0)]
    assert store.list_attempts(job.id)[0].ended_at is not None
    with pytest.raises(FencedError):
        store.set_stage(attempt.id, 0, status="running", step=4, total_steps=10)
    again = store.start_attempt(job.id, epoch=epoch)
    store.set_stage(again.id, 0, status="running", step=4, total_steps=10)
    failed = store.transition(job.id, "failed", epoch=epoch, reason="attempts_exhausted")
    assert [stage.status for stage in failed.stages] == ["failed", "skipped"]
    with pytest.raises(IllegalTransition, match="already failed"):
        store.transition(job.id, "queued", epoch=epoch)


def test_attempts_without_progress_count_up_to_the_last_checkpoint(store, make_job):
    epoch, job = store.acquire_lease("s", 60), make_job()

    def attempt(*, checkpoint: bool = False, paused: bool = False) -> None:
        made = store.start_attempt(job.id, epoch=epoch)
        store.mark_running(made.id)
        if checkpoint:
            store.commit_checkpoint(
                made.id, id=f"ckpt_{made.number}", stage_index=0, step=1, global_step=1, path="/c", manifest_sha256="s", kind="resume",
                policy_version=made.number,
            )
        if paused:
            store.request_pause(job.id)
            store.finish_attempt(made.id, "paused", None, "paused")
            store.request_resume(job.id)
        else:
            store.end_attempt(made.id, epoch=epoch, exit_reason="driver_lost", message="died")
            store.transition(job.id, "queued", epoch=epoch)

    counts = []
    for options in ({}, {}, {"checkpoint": True}, {}, {"paused": True}, {}):
        attempt(**options)
        counts.append(store.attempts_without_progress(job.id))
    assert counts == [1, 2, 0, 1, 1, 2]


def test_only_the_newest_live_attempt_may_write(store, make_job):
    epoch, job = store.acquire_lease("s", 60), make_job()
    old = store.start_attempt(job.id, epoch=epoch)
    store.end_attempt(old.id, epoch=epoch, exit_reason="driver_lost", message="died")
    store.transition(job.id, "queued", epoch=epoch)
    new = store.start_attempt(job.id, epoch=epoch)
    assert (old.number, new.number) == (1, 2)
    before = store.get_job(job.id)
    writes = (
        lambda: store.begin_incarnation(old.id),
        lambda: store.mark_running(old.id),
        lambda: store.control(old.id),
        lambda: store.set_stage(old.id, 0, status="running", step=1, total_steps=10),
        lambda: store.finish_attempt(old.id, "failed", None, "x"),
        lambda: store.commit_checkpoint(
            old.id, id="c", stage_index=0, step=1, global_step=1, path="/c", manifest_sha256="s", kind="resume", policy_version=1
        ),
    )
    for write in writes:
        with pytest.raises(FencedError):
            write()
    assert store.get_job(job.id) == before
    with pytest.raises(NotFound):
        store.job_of_attempt("att_nobody")


def test_incarnations_grow_over_attempts(store, make_job):
    epoch, job = store.acquire_lease("s", 60), make_job()
    first = store.start_attempt(job.id, epoch=epoch)
    assert [store.begin_incarnation(first.id) for _ in range(2)] == [1, 2]
    store.transition(job.id, "queued", epoch=epoch)
    second = store.start_attempt(job.id, epoch=epoch)
    assert store.begin_incarnation(second.id) == 3


def test_a_repeated_finish_counts_once(store, make_job):
    epoch, job = store.acquire_lease("s", 60), make_job()
    attempt = store.start_attempt(job.id, epoch=epoch)
    store.mark_running(attempt.id)
    store.finish_attempt(attempt.id, "succeeded", None, "all stages done")
    before = store.get_job(job.id)
    store.finish_attempt(attempt.id, "succeeded", None, "all stages done")
    assert store.get_job(job.id) == before and before.status == "succeeded"
    with pytest.raises(FencedError):
        store.finish_attempt(attempt.id, "failed", None, "no")
