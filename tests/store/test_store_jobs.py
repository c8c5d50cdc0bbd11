"""Jobs: made once, found, listed, labelled, changed."""

from __future__ import annotations

import threading

import pytest

from cluster.errors import Conflict, IllegalTransition, NotFound
from tests.store.conftest import job_spec


def test_a_job_keeps_what_it_was_made_of(store):
    spec = job_spec(seed=7, labels={"team": "a", "we.ird \"key\"": "x=y"})
    job, replayed = store.create_job(spec, resolved={"model_sha256": "ab", "bad": float("nan")}, idempotency_key=None, request_hash="h")
    found = store.get_job(job.id)
    assert found == job and not replayed
    assert found.spec == spec.model_dump(mode="json") and found.resolved == {"model_sha256": "ab", "bad": None}
    assert [(stage.index, stage.name, stage.status, stage.step, stage.total_steps) for stage in found.stages] == [
        (0, "sums", "queued", 0, 10),
        (1, "more", "queued", 0, 5),
    ]
    assert (found.status, found.desired_status, len(found.spec_hash)) == ("queued", "running", 64)
    assert store.list_events(job.id)[0].kind == "job.status"


def test_the_same_key_gives_the_same_job_and_another_body_is_a_conflict(store):
    first, _ = store.create_job(job_spec(), resolved={}, idempotency_key="k", request_hash="one")
    again, replayed = store.create_job(job_spec(), resolved={}, idempotency_key="k", request_hash="one")
    assert replayed and again.id == first.id
    with pytest.raises(Conflict) as caught:
        store.create_job(job_spec("other"), resolved={}, idempotency_key="k", request_hash="two")
    assert caught.value.reason == "idempotency_key_reused" and first.id in caught.value.message
    assert len(store.list_jobs()[0]) == 1


def test_sixteen_threads_with_one_key_make_one_job(open_store):
    stores = [open_store() for _ in range(4)]
    barrier, made, errors = threading.Barrier(16), [], []

    def submit(number: int) -> None:
        try:
            barrier.wait(10)
            made.append(stores[number % 4].create_job(job_spec(), resolved={}, idempotency_key="one", request_hash="h"))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len({job.id for job, _ in made}) == 1
    assert sorted(replayed for _, replayed in made) == [False] + [True] * 15


def test_a_job_is_found_by_its_name_the_newest_first_but_an_id_goes_before_a_name(store, make_job):
    old, new = make_job("twice"), make_job("twice")
    assert store.get_job("twice").id == new.id and new.id > old.id
    thief = make_job(old.id.replace("-", "_"))
    assert thief.name == old.id and store.get_job(old.id).id == old.id
    with pytest.raises(NotFound, match="nobody"):
        store.get_job("nobody")


def test_pages_follow_each_other_without_a_gap_in_both_orders(store, make_job):
    ids = [make_job(f"job{number}").id for number in range(7)]
    for order, expected in (("asc", ids), ("desc", ids[::-1])):
        seen, after, more = [], None, True
        while more:
            page, more = store.list_jobs(after=after, limit=3, order=order)
            seen += [job.id for job in page]
            after = page[-1].id
        assert seen == expected


def test_lists_are_filtered_by_status_name_and_all_labels(store, make_job):
    odd = 'a"b.$c'
    one = make_job("one", labels={"team": "x", odd: "1"})
    two = make_job("two", labels={"team": "x"})
    store.request_cancel(two.id)
    names = lambda **query: [job.name for job in store.list_jobs(**query)[0]]  # noqa: E731
    assert names(label=("team", "x")) == ["two", "one"]
    assert names(label={"team": "x", odd: "1"}) == ["one"]
    assert names(label=("team", "y")) == [] and names(label=("none", "x")) == []
    assert names(status="cancelled") == ["two"] and names(name="one") == ["one"]
    assert store.count_jobs() == {"queued": 1, "cancelled": 1}
    assert store.oldest_queued_at() == one.created_at


def test_every_change_grows_the_version(store, make_job):
    job = make_job()
    versions = [job.version]
    epoch = store.acquire_lease("s", 60)
    attempt = store.start_attempt(job.id, epoch=epoch)
    for change in (
        lambda: store.mark_running(attempt.id),
        lambda: store.set_stage(attempt.id, 0, status="running", step=1, total_steps=10),
        lambda: store.append_event(job.id, kind="warning", level="warning", message="x"),
        lambda: store.request_pause(job.id),
    ):
        change()
        versions.append(store.get_job(job.id).version)
    assert versions == sorted(set(versions))


# -- cancel, pause, resume -------------------------------------------------------------------------------------------


def test_where_nothing_runs_a_request_takes_effect_at_once(store, make_job):
    job = make_job()
    assert store.request_pause(job.id).status == "paused"
    assert store.next_queued() is None
    assert store.request_resume(job.id).status == "queued"
    done = store.request_cancel(job.id, "now")
    assert (done.status, done.desired_status) == ("cancelled", "cancelled") and done.finished_at is not None
    assert [stage.status for stage in done.stages] == ["skipped", "skipped"]
    assert store.request_cancel(job.id).version == done.version, "asking again changes nothing"


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_a_finished_job_says_so(store, make_job, outcome):
    job = make_job()
    attempt = store.start_attempt(job.id, epoch=store.acquire_lease("s", 60))
    store.mark_running(attempt.id)
    store.finish_attempt(attempt.id, outcome, None, "over")
    for request in (store.request_cancel, store.request_pause, store.request_resume):
        with pytest.raises(IllegalTransition, match=f"already {outcome}") as caught:
            request(job.id)
        assert caught.value.details == {"status": outcome, "allowed": []}


def test_resume_of_a_running_job_tells_what_it_accepts(store, make_job):
    job = make_job()
    with pytest.raises(IllegalTransition, match="is queued and cannot resume") as caught:
        store.request_resume(job.id)
    assert caught.value.details == {"status": "queued", "allowed": ["cancel", "pause"]}


def test_a_cancel_is_never_taken_back_and_never_softened(store, make_job):
    job = make_job()
    attempt = store.start_attempt(job.id, epoch=store.acquire_lease("s", 60))
    store.mark_running(attempt.id)
    assert store.control(attempt.id) == ("running", "graceful")
    store.request_cancel(job.id, "now")
    assert store.control(attempt.id) == ("cancelled", "now")
    store.request_cancel(job.id, "graceful")
    assert store.control(attempt.id) == ("cancelled", "now")
    for request in (store.request_pause, store.request_resume):
        with pytest.raises(IllegalTransition):
            request(job.id)
    store.finish_attempt(attempt.id, "paused", "paused", "stopped at a step")
    assert store.get_job(job.id).status == "cancelled"


def test_a_pause_that_is_taken_back_lets_the_job_run_on(store, make_job):
    job = make_job()
    epoch = store.acquire_lease("s", 60)
    attempt = store.start_attempt(job.id, epoch=epoch)
    store.mark_running(attempt.id)
    store.request_pause(job.id)
    assert store.transition(job.id, "pausing", epoch=epoch).status == "pausing"
    assert store.request_resume(job.id).status == "running"
    assert store.transition(job.id, "pausing", epoch=epoch).status == "running", "the scheduler's view was an old one"
    assert store.control(attempt.id)[0] == "running"


def test_a_job_that_stopped_for_a_pause_that_was_taken_back_is_queued(store, make_job):
    job = make_job()
    epoch = store.acquire_lease("s", 60)
    attempt = store.start_attempt(job.id, epoch=epoch)
    store.mark_running(attempt.id)
    store.request_pause(job.id)
    store.request_resume(job.id)
    store.finish_attempt(attempt.id, "paused", "paused", "stopped at a step")
    assert store.get_job(job.id).status == "queued"
