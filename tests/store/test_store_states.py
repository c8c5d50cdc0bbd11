"""The state machine: every pair by the table, and random lives of a job against a model."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.errors import FencedError, IllegalTransition
from services.jobs import states
from services.jobs.store import JobStore
from tests.store.conftest import job_spec

LEGAL = {
    "queued": "starting paused cancelled failed",
    "starting": "running pausing cancelling queued paused succeeded failed cancelled",
    "running": "pausing cancelling queued paused succeeded failed cancelled",
    "pausing": "starting running cancelling queued paused succeeded failed cancelled",
    "paused": "queued cancelled",
    "cancelling": "succeeded failed cancelled",
}


@pytest.mark.parametrize(("status", "to"), list(itertools.product(states.TRANSITIONS, repeat=2)))
def test_every_pair(status, to):
    if to in LEGAL.get(status, "").split():
        states.check_transition("job_x", status, to)
        return
    with pytest.raises(IllegalTransition, match=status) as caught:
        states.check_transition("job_x", status, to)
    assert caught.value.details == {"status": status, "allowed": sorted(LEGAL.get(status, "").split())}


@pytest.mark.parametrize("desired", states.DESIRED)
@pytest.mark.parametrize("status", states.ACTIVE)
@pytest.mark.parametrize("to", ["queued", "paused", "pausing"])
def test_wherever_a_job_is_sent_it_settles_where_it_legally_may(status, to, desired):
    settled = states.settle(to, desired)
    if status == "cancelling" and desired != "cancelled":
        return  # a cancel is never taken back, so this does not happen
    assert settled in (status, "running") or settled in states.TRANSITIONS[status]
    assert (settled == "queued") <= (desired == "running")


def test_terminal_is_terminal():
    assert {"succeeded", "failed", "cancelled"} == states.TERMINAL
    assert states.TERMINAL.isdisjoint(states.ACTIVE)


class LifeOfAJob(RuleBasedStateMachine):
    """A user, a scheduler that dies and comes back, and drivers of which only the newest counts."""

    url = ""

    @initialize()
    def begin(self):
        self.store = JobStore(self.url)
        self.job = self.store.create_job(job_spec(), resolved={}, idempotency_key=None, request_hash="h")[0]
        self.epoch = self.store.acquire_lease("s", 60)
        self.drivers: list[str] = []
        self.seen_version = self.job.version
        self.ended_as: str | None = None

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()

    def now(self):
        return self.store.get_job(self.job.id)

    @rule(action=st.sampled_from(["cancel", "pause", "resume"]), mode=st.sampled_from(["graceful", "now"]))
    def user_asks(self, action, mode):
        before = self.now()
        call = {
            "cancel": lambda: self.store.request_cancel(self.job.id, mode),
            "pause": lambda: self.store.request_pause(self.job.id),
            "resume": lambda: self.store.request_resume(self.job.id),
        }[action]
        try:
            after = call()
        except IllegalTransition as error:
            assert self.now() == before and action not in error.details["allowed"]
            return
        assert after.desired_status == {"cancel": "cancelled", "pause": "paused", "resume": "running"}[action]
        assert before.desired_status != "cancelled" or after.desired_status == "cancelled"

    @precondition(lambda self: self.store.next_queued() is not None and self.now().status == "queued")
    @rule()
    def scheduler_starts(self):
        self.drivers.append(self.store.start_attempt(self.job.id, epoch=self.epoch).id)

    @precondition(lambda self: self.drivers)
    @rule(data=st.data(), what=st.sampled_from(["run", "succeeded", "failed", "paused", "cancelled", "stage", "checkpoint"]))
    def driver_speaks(self, data, what):
        driver = data.draw(st.sampled_from(self.drivers))
        before = self.now()
        live = driver == self.drivers[-1] and before.status in states.ACTIVE
        try:
            if what == "run":
                self.store.mark_running(driver)
            elif what == "stage":
                self.store.set_stage(driver, 0, status="running", step=1, total_steps=10)
            elif what == "checkpoint":
                self.store.commit_checkpoint(
                    driver, id=f"c_{driver}_{before.version}", stage_index=0, step=1, global_step=1, path="/", manifest_sha256="s", kind="resume",
                    policy_version=before.version,
                )  # fmt: skip
            else:
                self.store.finish_attempt(driver, what, None, what)
                assert live or self.now() == before
                return
        except FencedError:
            assert not live and self.now() == before
            return
        assert live

    @precondition(lambda self: self.drivers and self.now().status in states.ACTIVE)
    @rule(to=st.sampled_from(["queued", "paused", "pausing", "cancelling", "cancelled"]), ends=st.booleans())
    def scheduler_moves(self, to, ends):
        desired = self.now().desired_status
        if to in ("cancelling", "cancelled") and desired != "cancelled":
            return
        if ends and to in ("queued", "paused", "cancelled"):
            self.store.end_attempt(self.drivers[-1], epoch=self.epoch, exit_reason="driver_lost", message="gone")
        if to in ("pausing", "cancelling") or ends:
            self.store.transition(self.job.id, to, epoch=self.epoch, reason="test")

    @rule()
    def scheduler_is_replaced(self):
        old = self.epoch
        self.store.release_lease("s", old)
        self.epoch = self.store.acquire_lease("s", 60)
        with pytest.raises(FencedError):
            self.store.transition(self.job.id, "failed", epoch=old)

    @invariant()
    def what_always_holds(self):
        if not hasattr(self, "job"):
            return
        job, attempts = self.now(), self.store.list_attempts(self.job.id)
        assert job.version >= self.seen_version
        self.seen_version = job.version
        assert self.ended_as in (None, job.status), "terminal is terminal"
        if job.status in states.TERMINAL:
            self.ended_as = job.status
            assert job.finished_at is not None
        live = [attempt for attempt in attempts if attempt.ended_at is None]
        assert len(live) <= 1 and (not live or live[0].id == attempts[-1].id)
        assert bool(live) <= (job.status in states.ACTIVE)
        if job.status == "queued":
            assert job.desired_status == "running"
        if job.status == "paused":
            assert job.desired_status == "paused"
        path = [event.data for event in self.store.list_events(job.id, limit=10_000) if event.kind == "job.status"]
        assert path[-1]["status"] == job.status
        for before, after in itertools.pairwise(item["status"] for item in path):
            assert after in states.TRANSITIONS[before], f"{before} -> {after} is not in the table"


def test_random_lives_of_a_job(url, backend):
    LifeOfAJob.url = url
    machine = LifeOfAJob.TestCase
    machine.settings = settings(
        max_examples=25 if backend == "sqlite" else 10, stateful_step_count=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    machine("runTest").runTest()
