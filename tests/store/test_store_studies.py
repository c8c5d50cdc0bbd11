"""Studies in the store: one transaction, queue order, derived status, requests over all members, shared base scores."""

from __future__ import annotations

import threading
import time

import pytest

from cluster.errors import Conflict, IllegalTransition, NotFound
from cluster.spec.study import StudySpec, expand
from services.jobs.study_rows import NewMember, StudyRows
from tests.store.conftest import job_spec

BASE = {
    "name": "base",
    "model": {"path": "m"},
    "stages": [{"name": name, "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}, "steps": 10} for name in ("sums", "more")],
}


def study_spec(**changes) -> StudySpec:
    orders = [{"name": "ab", "stages": ["sums", "more"], "seeds": [1, 2]}]
    return StudySpec.model_validate({"name": "ablation", "base": BASE, "arms": [{"name": "a"}, {"name": "b"}], "orders": orders} | changes)


@pytest.fixture
def make_study(store):
    """``make_study(recorded={position})`` stores a study of four members; those of ``recorded`` come with a record."""

    def make(recorded=(), key=None, request_hash="h", record=None, **changes):
        spec = study_spec(**changes)
        members = [
            NewMember(
                arm=member.arm,
                order=member.order,
                seed=member.seed,
                digest=member.digest,
                spec=None if member.position in recorded else job_spec(f"m-{member.position}"),
                resolved={"model_path": "/m", "model_sha256": "0" * 64} | ({"inputs": {"/stages/0/domain": "f"}} if member.position == 1 else {}),
                record=(record or {"status": "succeeded", "arm": member.arm}) if member.position in recorded else None,
            )
            for member in expand(spec)
        ]
        return store.create_study(spec, members, spec_hash="s", idempotency_key=key, request_hash=request_hash)[0]

    return make


def _run_next(store, epoch, outcome="succeeded", *, job_id=None, reason=None):
    """Start the next job of the queue and let it end; returns its id."""
    job = store.next_queued() if job_id is None else store.get_job(job_id)
    attempt = store.start_attempt(job.id, epoch=epoch)
    store.mark_running(attempt.id)
    if outcome is not None:
        store.finish_attempt(attempt.id, outcome, reason=reason, message=None)
    return job.id


@pytest.fixture
def epoch(store):
    return store.acquire_lease("me", 60.0)


def test_members_are_queued_in_the_order_of_the_study_and_the_file_expands_again(store, make_study, epoch):
    study = make_study()
    members = store.study_members(study.id)
    assert [(member.arm, member.seed) for member in members] == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [_run_next(store, epoch) for _ in range(4)] == [member.job_id for member in members]
    stored = StudySpec.model_validate(store.get_study("ablation").spec)
    assert [member.digest for member in expand(stored)] == [member.digest for member in members]


def test_a_member_with_a_record_has_no_job_and_counts_as_succeeded(store, make_study):
    study = make_study(recorded={0, 3})
    members = store.study_members(study.id)
    assert [member.job_id is None for member in members] == [True, False, False, True]
    assert [member.recorded for member in members] == [True, False, False, True]
    assert [member.inputs for member in members] == [None, {"/stages/0/domain": "f"}, None, None]
    assert study.counts == {"succeeded": 2, "queued": 2}
    assert store.kept_records(study.id) == {0: {"status": "succeeded", "arm": "a"}, 3: {"status": "succeeded", "arm": "b"}}


def test_a_member_whose_record_says_that_its_method_failed_counts_as_failed_and_is_not_run_again(store, make_study):
    record = {"status": "failed", "reason": "non_finite_loss", "message": "3 steps in a row", "arm": "a"}
    study = make_study(recorded={0}, record=record)
    first = store.study_members(study.id)[0]
    assert (first.status, first.reason, first.message, first.job_id) == ("failed", "non_finite_loss", "3 steps in a row", None)
    assert study.counts == {"failed": 1, "queued": 3}
    store.request_study(study.id, "pause")
    assert store.request_study(study.id, "resume").counts == {"failed": 1, "queued": 3}


def test_an_idempotency_key_stands_for_one_study(store, make_study):
    first = make_study(key="k")
    assert make_study(key="k").id == first.id
    assert len(store.jobs_in(["queued"])) == 4
    with pytest.raises(Conflict):
        make_study(key="k", request_hash="other")


def test_a_study_that_cannot_be_stored_leaves_no_job(store, make_study):
    spec = study_spec()
    broken = NewMember(arm="a", order="ab", seed=1, digest="d" * 64, spec=job_spec("x"), resolved={}, record=None)
    with pytest.raises(AttributeError):
        store.create_study(spec, [broken, None], spec_hash="s")
    assert store.jobs_in(["queued"]) == [] and store.list_studies() == ([], False)


def test_pause_and_resume_reach_every_member(store, make_study, epoch):
    study = make_study()
    running = _run_next(store, epoch, outcome=None)
    counts = store.request_study(study.id, "pause").counts
    assert counts == {"running": 1, "paused": 3}
    assert store.get_job(running).desired_status == "paused" and store.next_queued() is None
    assert store.request_study(study.id, "resume").counts == {"queued": 3, "running": 1}
    assert store.get_job(running).desired_status == "running"


def test_resume_runs_failed_and_cancelled_members_again_as_new_jobs(store, make_study, epoch):
    study = make_study()
    done, failed = _run_next(store, epoch), _run_next(store, epoch, "failed")
    assert store.request_study(study.id, "cancel").counts == {"succeeded": 1, "failed": 1, "cancelled": 2}
    before = store.study_members(study.id)
    assert store.request_study(study.id, "resume").counts == {"succeeded": 1, "queued": 3}
    after = store.study_members(study.id)
    assert after[0].job_id == done and before[1].job_id == failed
    fresh = [member.job_id for member in after[1:]]
    assert not {member.job_id for member in before} & set(fresh)
    assert [_run_next(store, epoch) for _ in fresh] == fresh
    assert store.get_job(fresh[0]).spec == store.get_job(failed).spec
    assert store.get_study(study.id).counts == {"succeeded": 4}
    with pytest.raises(IllegalTransition, match="nothing is left to run"):
        store.request_study(study.id, "resume")


def test_a_resume_leaves_a_member_that_failed_by_its_method(store, make_study, epoch):
    study = make_study()
    first = _run_next(store, epoch, "failed", reason="non_finite_loss")
    assert store.request_study(study.id, "cancel").counts == {"failed": 1, "cancelled": 3}
    assert store.request_study(study.id, "resume").counts == {"failed": 1, "queued": 3}
    assert store.study_members(study.id)[0].job_id == first
    for _ in range(3):
        _run_next(store, epoch)
    with pytest.raises(IllegalTransition, match="is failed and cannot resume; nothing is left to run"):
        store.request_study(study.id, "resume")


def test_two_resumes_at_once_give_a_member_one_job(store, open_store, make_study, epoch, monkeypatch):
    study = make_study()
    _run_next(store, epoch, "failed")
    store.request_study(study.id, "cancel")
    slow = StudyRows._queue_again

    def queue_again(*arguments):
        time.sleep(0.1)  # long enough for the other one to read the members, where nothing keeps it from that
        slow(*arguments)

    monkeypatch.setattr(StudyRows, "_queue_again", queue_again)
    stores, barrier, found = [open_store(), open_store()], threading.Barrier(2), []

    def resume(number: int) -> None:
        barrier.wait(10)
        found.append(stores[number].request_study(study.id, "resume").counts)

    threads = [threading.Thread(target=resume, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [{"queued": 4}, {"queued": 4}]
    queued = [job.id for job in store.jobs_in(["queued"])]
    assert sorted(queued) == sorted(member.job_id for member in store.study_members(study.id))


def test_a_single_job_does_not_wait_for_a_study(store, make_study, make_job, epoch):
    study = make_study()
    first, *others = [member.job_id for member in store.study_members(study.id)]
    assert _run_next(store, epoch) == first
    single = make_job("single").id
    assert [_run_next(store, epoch) for _ in range(4)] == [single, *others]


def test_a_resume_waits_for_members_that_are_being_cancelled(store, make_study, epoch):
    study = make_study()
    job_id = _run_next(store, epoch, outcome=None)
    store.request_study(study.id, "cancel")
    store.transition(job_id, "cancelling", epoch=epoch)
    with pytest.raises(IllegalTransition, match="still being cancelled"):
        store.request_study(study.id, "resume")


def test_pages_of_studies_and_the_newest_of_a_name(store, make_study):
    ids = [make_study().id for _ in range(3)]
    page, more = store.list_studies(limit=2)
    assert ([study.id for study in page], more) == ([ids[2], ids[1]], True)
    page, more = store.list_studies(limit=2, after=ids[1])
    assert ([study.id for study in page], more) == ([ids[0]], False)
    assert store.get_study("ablation").id == ids[2]
    with pytest.raises(NotFound):
        store.get_study("nothing")


def test_the_times_of_a_study_are_those_of_its_members(store, make_study, epoch):
    study = make_study(recorded={0, 1, 2})
    assert study.started_at is None and study.finished_at is None
    job = store.get_job(_run_next(store, epoch))
    study = store.get_study(study.id)
    assert (study.started_at, study.finished_at) == (job.started_at, job.finished_at)
    assert store.study_members(study.id)[3].steps_total == 15


def _score(store, attempt_id, *, digest="p", domain="sums", measured_on="cpu/float32", mean=0.5):
    store.record_evaluation(
        attempt_id, row=0, stage_index=None, step=0, domain=domain, mean=mean, num_problems=2, truncation_rate=0.0, mean_tokens=3.0,
        scores=[0.0, 1.0], at="boundary", problems_digest=digest, samples_per_problem=1, passed=[0, 1], measured_on=measured_on,
    )


def test_the_base_scores_of_another_member_are_found(store, make_study, make_job, epoch):
    study = make_study()
    members = store.study_members(study.id)
    attempt = store.start_attempt(members[0].job_id, epoch=epoch)
    _score(store, attempt.id)
    found = store.base_evaluations(members[1].job_id, {"sums": "p", "more": "p"}, "cpu/float32")
    assert [(item.domain, item.job_id, item.scores, item.passed) for item in found] == [("sums", members[0].job_id, [0.0, 1.0], [0, 1])]
    assert store.base_evaluations(members[0].job_id, {"sums": "p"}, "cpu/float32") == [], "a job's own scores are no other's"
    assert store.base_evaluations(members[1].job_id, {"sums": "q"}, "cpu/float32") == [], "other problems"
    assert store.base_evaluations(members[1].job_id, {"sums": "p"}, "cuda/bfloat16") == [], "another device"
    assert store.base_evaluations(make_job("alone").id, {"sums": "p"}, "cpu/float32") == [], "no member"
    other = make_study()
    assert store.base_evaluations(store.study_members(other.id)[0].job_id, {"sums": "p"}, "cpu/float32") == [], "another study"


def test_the_place_of_a_job_in_its_study(store, make_study, make_job):
    study = make_study()
    place = store.place_in_study(store.study_members(study.id)[3].job_id)
    assert (place.study_id, place.study, place.arm, place.order, place.seed) == (study.id, "ablation", "b", "ab", 2)
    assert store.place_in_study(make_job("alone").id) is None
