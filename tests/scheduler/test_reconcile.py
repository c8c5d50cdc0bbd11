"""The reconcile loop, tick by tick, against a store and a launcher in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from services.scheduler.reconcile import GRACE_S, Reconciler


@dataclass
class Job:
    id: str
    status: str = "queued"
    desired_status: str = "running"
    cancel_mode: str = "graceful"
    reason: str | None = None


@dataclass
class Attempt:
    id: str
    ended_at: str | None = None
    message: str | None = None
    exit_reason: str | None = None


@dataclass
class Store:
    jobs: dict[str, Job]
    attempts: dict[str, list[Attempt]] = field(default_factory=dict)
    without_progress: int = 0

    def jobs_in(self, statuses):
        return [job for job in self.jobs.values() if job.status in statuses]

    def next_queued(self):
        return next((job for job in self.jobs.values() if job.status == "queued"), None)

    def get_job(self, job_id):
        return self.jobs[job_id]

    def list_attempts(self, job_id):
        return self.attempts.get(job_id, [])

    def attempts_without_progress(self, job_id):
        return self.without_progress

    def start_attempt(self, job_id, *, epoch):
        attempt = Attempt(f"att_{job_id}_{len(self.list_attempts(job_id))}")
        self.attempts.setdefault(job_id, []).append(attempt)
        self.jobs[job_id].status = "starting"
        return attempt

    def end_attempt(self, attempt_id, *, epoch, exit_reason, message):
        for attempts in self.attempts.values():
            for attempt in attempts:
                if attempt.id == attempt_id:
                    attempt.ended_at, attempt.exit_reason = "now", exit_reason

    def transition(self, job_id, to, *, epoch, reason=None, message=None):
        self.jobs[job_id].status = to
        self.jobs[job_id].reason = reason


class FakeLauncher:
    def __init__(self):
        self.seen: dict[str, str] = {}
        self.launched: list[str] = []
        self.ended: list[str] = []

    def launch(self, attempt_id):
        self.launched.append(attempt_id)
        self.seen[attempt_id] = "alive"

    def observe(self, attempt_id):
        return self.seen.get(attempt_id, "missing")

    def end(self, attempt_id):
        self.ended.append(attempt_id)


@pytest.fixture
def world():
    store, launcher, clock = Store({"a": Job("a"), "b": Job("b")}), FakeLauncher(), [0.0]
    return store, launcher, clock, Reconciler(store, launcher, epoch=lambda: 1, max_running=1, clock=lambda: clock[0])


def test_one_job_at_a_time_and_the_next_when_it_is_done(world):
    store, launcher, _, reconciler = world
    reconciler.tick()
    reconciler.tick()
    assert launcher.launched == ["att_a_0"]
    store.jobs["a"].status = "succeeded"
    reconciler.tick()
    assert launcher.launched == ["att_a_0", "att_b_0"]


def test_a_running_attempt_that_ray_no_longer_knows_is_lost_and_the_job_starts_again(world):
    store, launcher, _, reconciler = world
    reconciler.tick()
    store.jobs["a"].status = "running"
    launcher.seen.clear()
    reconciler.tick()
    assert store.attempts["a"][0].ended_at is not None
    assert launcher.launched == ["att_a_0", "att_a_1"]


def test_a_starting_attempt_that_was_never_launched_is_launched_under_the_same_id(world):
    store, launcher, _, reconciler = world
    reconciler.tick()
    launcher.seen.clear()
    reconciler.tick()
    assert launcher.launched == ["att_a_0", "att_a_0"]
    assert len(store.attempts["a"]) == 1


def test_a_driver_that_finished_between_two_looks_has_the_last_word(world):
    store, launcher, _, reconciler = world
    reconciler.tick()
    store.jobs["a"].status = "running"
    launcher.seen["att_a_0"] = "ended"
    end = store.end_attempt
    store.end_attempt = lambda *args, **kwargs: (end(*args, **kwargs), setattr(store.jobs["a"], "status", "succeeded"))
    reconciler.tick()
    assert store.jobs["a"].status == "succeeded" and launcher.launched == ["att_a_0", "att_b_0"]


def test_unreachable_is_not_lost(world):
    store, launcher, _, reconciler = world
    reconciler.tick()
    store.jobs["a"].status = "running"
    launcher.seen["att_a_0"] = "unreachable"
    for _ in range(5):
        reconciler.tick()
    assert store.jobs["a"].status == "running" and launcher.launched == ["att_a_0"]


def test_cancel_is_asked_first_and_enforced_after_the_grace(world):
    store, launcher, clock, reconciler = world
    reconciler.tick()
    store.jobs["a"].status, store.jobs["a"].desired_status = "running", "cancelled"
    reconciler.tick()
    assert store.jobs["a"].status == "cancelling" and launcher.ended == []
    clock[0] = GRACE_S + 1
    reconciler.tick()
    assert launcher.ended == ["att_a_0"]
    launcher.seen["att_a_0"] = "ended"
    reconciler.tick()
    assert store.jobs["a"].status == "cancelled"


def test_cancel_now_does_not_wait(world):
    store, launcher, _, reconciler = world
    reconciler.tick()
    store.jobs["a"].status, store.jobs["a"].desired_status, store.jobs["a"].cancel_mode = "running", "cancelled", "now"
    reconciler.tick()
    assert launcher.ended == ["att_a_0"]


def test_a_lost_attempt_of_a_job_to_be_paused_is_paused_not_restarted(world):
    store, launcher, _, reconciler = world
    store.jobs.pop("b")
    reconciler.tick()
    store.jobs["a"].status, store.jobs["a"].desired_status = "pausing", "paused"
    launcher.seen["att_a_0"] = "ended"
    reconciler.tick()
    assert store.jobs["a"].status == "paused" and launcher.launched == ["att_a_0"]


def test_patience_starts_anew_with_every_request(world):
    store, launcher, clock, reconciler = world
    reconciler.tick()
    job = store.jobs["a"]
    for start in (0.0, 2 * GRACE_S):
        clock[0] = start
        job.status, job.desired_status = "running", "paused"
        reconciler.tick()
        job.status, job.desired_status = "running", "running"
        reconciler.tick()
    assert launcher.ended == []


def test_an_attempt_that_was_ended_for_a_pause_did_not_fail(world):
    store, launcher, _, reconciler = world
    reconciler.tick()
    store.jobs["a"].status, store.jobs["a"].desired_status = "pausing", "paused"
    launcher.seen["att_a_0"] = "ended"
    reconciler.tick()
    assert store.attempts["a"][0].exit_reason == "paused"


def test_a_poison_job_ends(world):
    store, launcher, _, reconciler = world
    store.without_progress = 3
    reconciler.tick()
    assert store.jobs["a"].status == "failed" and store.jobs["a"].reason == "attempts_exhausted"
    assert launcher.launched == []
