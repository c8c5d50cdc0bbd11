"""Events without gaps, checkpoints with one commit point, evaluations measured once, keys."""

from __future__ import annotations

import math
import threading

import pytest

from cluster.errors import Conflict, NotFound
from cluster.spec.job import JobSpec
from services.evaluation.report_side_effects import collapse_warnings
from services.jobs.ids import new_id
from services.scheduler.attempt_calls import AttemptCalls


@pytest.fixture
def attempt(store, make_job):
    job = make_job()
    started = store.start_attempt(job.id, epoch=store.acquire_lease("s", 60))
    store.mark_running(started.id)
    return started


def commit(store, attempt, number: int, **changes):
    fields = {
        "id": f"ckpt_{number}", "stage_index": 0, "step": number, "global_step": number, "path": f"/c/{number}", "manifest_sha256": f"{number:064d}",
        "kind": "resume", "policy_version": (1 << 40) + number,
    }  # fmt: skip
    store.commit_checkpoint(attempt.id, **(fields | changes))


def test_event_numbers_have_no_gaps_whoever_writes(open_store, make_job):
    job = make_job()
    first = len(open_store().list_events(job.id))
    stores, barrier, errors = [open_store() for _ in range(4)], threading.Barrier(8), []

    def write(number: int) -> None:
        try:
            barrier.wait(10)
            for index in range(10):
                stores[number % 4].append_event(job.id, kind="warning", level="info", message=f"{number}/{index}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    events = stores[0].list_events(job.id, limit=1000)
    assert [event.seq for event in events] == list(range(1, first + 81))
    assert len({event.message for event in events[first:]}) == 80
    for number in range(8):
        mine = [event.message for event in events if event.message.startswith(f"{number}/")]
        assert mine == [f"{number}/{index}" for index in range(10)]


def test_events_are_read_on_from_a_number(store, make_job):
    job = make_job()
    for index in range(5):
        store.append_event(job.id, kind="log", level="info", message=str(index), data={"i": index}, stage="sums")
    seen = store.list_events(job.id, after_seq=2, limit=2)
    assert [(event.seq, event.message, event.data, event.stage) for event in seen] == [(3, "1", {"i": 1}, "sums"), (4, "2", {"i": 2}, "sums")]
    with pytest.raises(NotFound):
        store.append_event("job_none", kind="log", level="info", message="x")


def test_the_signs_of_collapse_of_a_long_job_are_found_among_its_events(store, attempt):
    """More events than a page, and a restart that voided what was said after the step that it went back to."""
    calls, job = AttemptCalls(store), store.job_of_attempt(attempt.id)
    stage = job.spec["stages"][0]["name"]
    sign = {"code": "length_tail", "severity": "warning", "message": "longer", "evidence": {"level": 2.0}, "stage": stage}
    calls.stage_started(attempt.id, 0, stage, step=0, total_steps=60, resumed=False)
    calls.collapse_warning(attempt.id, sign | {"raised": True, "step": 12})
    for number in range(120):
        store.append_event(job.id, kind="log", message=str(number))
    calls.collapse_warning(attempt.id, sign | {"raised": False, "step": 30})
    calls.stage_started(attempt.id, 0, stage, step=20, total_steps=60, resumed=True)
    calls.collapse_warning(attempt.id, sign | {"raised": False, "step": 31})
    events = calls.report_source(attempt.id)["events"]
    assert {event["kind"] for event in events} == {"stage.status", "collapse.warning", "collapse.cleared"}
    found = collapse_warnings(JobSpec.model_validate(job.spec).resolved_stages(), events)
    assert [(item["raised"], item["step"]) for item in found] == [(True, 12), (False, 31)]


def test_whatever_an_error_says_can_be_stored(store, make_job, attempt):
    job = store.job_of_attempt(attempt.id)
    seq = store.append_event(job.id, kind="log", level="error", message="nul \x00 half \ud800 " + "x" * 20_000, data={"loss": math.nan, "of\x00": [math.inf, object]})
    event = store.list_events(job.id, after_seq=seq - 1)[0]
    assert event.message.startswith("nul \\0 half ? xxx") and len(event.message) == 8000
    assert event.data == {"loss": None, "of\\0": [None, "<class 'object'>"]}
    store.set_stage(attempt.id, 0, status="running", step=1, total_steps=2, message="nul \x00")
    store.finish_attempt(attempt.id, "failed", "r" * 10, "nul \x00 half \ud800")
    assert store.get_job(job.id).message == "nul \\0 half ?"


def test_a_checkpoint_is_committed_with_its_event_or_not_at_all(store, attempt):
    job = store.job_of_attempt(attempt.id)
    before = len(store.list_events(job.id))
    commit(store, attempt, 1)
    events = store.list_events(job.id)[before:]
    assert [(event.kind, event.data["checkpoint"]) for event in events] == [("checkpoint.saved", "ckpt_1")]
    latest = store.latest_checkpoint(job.id)
    assert (latest.id, latest.path, latest.policy_version, latest.global_step) == ("ckpt_1", "/c/1", (1 << 40) + 1, 1)
    commit(store, attempt, 1)
    assert len(store.list_events(job.id)) == before + 1, "a commit whose answer was lost is repeated and counts once"
    with pytest.raises(Conflict):
        commit(store, attempt, 1, manifest_sha256="0")


def test_a_bad_checkpoint_is_never_offered_again(store, attempt):
    job = store.job_of_attempt(attempt.id)
    assert store.latest_checkpoint(job.id) is None
    for number in (1, 2, 3):
        commit(store, attempt, number)
    store.mark_checkpoint_bad("ckpt_3")
    assert store.latest_checkpoint(job.id).id == "ckpt_2"
    commit(store, attempt, 4, step=3, global_step=3)
    assert store.latest_checkpoint(job.id).id == "ckpt_4", "a redone step is newer than the one that was damaged"
    for number in (1, 2, 4):
        store.mark_checkpoint_bad(f"ckpt_{number}")
    assert store.latest_checkpoint(job.id) is None


def test_the_latest_is_the_last_commit_even_if_the_clock_went_back(store, attempt):
    job = store.job_of_attempt(attempt.id)
    commit(store, attempt, 2, id="ckpt_z")
    commit(store, attempt, 3, id="ckpt_a")
    assert [record.id for record in store.list_checkpoints(job.id)] == ["ckpt_z", "ckpt_a"]
    assert store.latest_checkpoint(job.id).id == "ckpt_a"


def test_an_evaluation_is_kept_once_per_point(store, attempt):
    job = store.job_of_attempt(attempt.id)
    fields = {"stage_index": None, "step": 0, "num_problems": 2, "truncation_rate": 0.0, "mean_tokens": 3.5}
    for row, domain, at, mean in ((0, "sums", "boundary", 0.5), (1, "sums", "during", 0.75), (1, "sums", "boundary", 1.0), (0, "sums", "boundary", 0.25)):
        store.record_evaluation(attempt.id, row=row, domain=domain, at=at, mean=mean, scores=[mean, mean], **fields)
    found = {(item.row, item.domain, item.at): (item.mean, list(item.scores)) for item in store.list_evaluations(job.id)}
    assert found == {
        (0, "sums", "boundary"): (0.25, [0.25, 0.25]),
        (1, "sums", "during"): (0.75, [0.75, 0.75]),
        (1, "sums", "boundary"): (1.0, [1.0, 1.0]),
    }


def test_an_evaluation_remembers_what_it_was_measured_on_and_old_rows_do_not(store, attempt):
    fields = {"stage_index": None, "step": 0, "num_problems": 2, "truncation_rate": 0.0, "mean_tokens": 3.5, "mean": 0.5, "scores": [0.25, 0.75], "at": "boundary"}
    store.record_evaluation(attempt.id, row=0, domain="old", **fields)
    store.record_evaluation(attempt.id, row=0, domain="sums", problems_digest="abc", samples_per_problem=4, passed=[1, 3], **fields)
    found = {item.domain: (item.problems_digest, item.samples_per_problem, item.passed) for item in store.list_evaluations(attempt.job_id)}
    assert found == {"old": (None, None, None), "sums": ("abc", 4, [1, 3])}


def test_keys_are_checked_whole(store):
    assert store.num_api_keys() == 0
    key, other = store.create_api_key("first"), store.create_api_key("second")
    assert store.num_api_keys() == 2 and key != other
    prefix, key_id, secret = key.split("_")
    assert prefix == "hf" and len(secret) == 64
    assert store.verify_api_key(key) and store.verify_api_key(other)
    flipped = secret[:-1] + ("0" if secret[-1] != "0" else "1")
    wrong = [f"hf_{key_id}_{flipped}", f"hf_{key_id}_{other.split('_')[2]}", f"hf_00000000_{secret}", key.upper(), key + "0", f" {key}", key_id, "", "hf__", "\x00", "\ud800"]
    assert [text for text in wrong if store.verify_api_key(text)] == []


def test_the_secret_is_not_in_the_database(store, url, backend, tmp_path):
    key = store.create_api_key("first")
    store.close()
    if backend != "sqlite":
        pytest.skip("looked for in SQLite's files")
    content = b"".join(path.read_bytes() for path in tmp_path.glob("store.db*"))
    assert key.split("_")[1].encode() in content and key.split("_")[2].encode() not in content


def test_ids_sort_by_time_even_within_one_tick():
    made = [new_id("evt") for _ in range(5000)]
    assert made == sorted(set(made)) and all(len(text) == 36 and text.startswith("evt_") for text in made)
    assert {text[16] for text in made} == {"7"}


def test_scores_of_an_undone_policy_are_forgotten_and_the_others_stay(store, attempt):
    def measure(row, step, at):
        store.record_evaluation(
            attempt.id, row=row, stage_index=None, step=step, domain="sums", mean=0.5, num_problems=1, truncation_rate=0.0, mean_tokens=1.0, scores=[0.5], at=at
        )

    for row, step, at in ((0, 0, "boundary"), (1, 4, "during"), (1, 8, "during"), (1, 9, "boundary"), (2, 4, "during"), (2, 9, "boundary")):
        measure(row, step, at)
    store.forget_evaluations(attempt.id, row=0, during_row=1, step=4)
    assert [(item.row, item.step, item.at) for item in store.list_evaluations(attempt.job_id)] == [(0, 0, "boundary"), (1, 4, "during")]


def test_committing_the_same_place_again_is_no_progress(store, make_job):
    job, epoch, counted = make_job(), store.acquire_lease("s", 60), []
    for number, global_step in enumerate((5, 5, 6)):
        started = store.start_attempt(job.id, epoch=epoch)
        store.mark_running(started.id)
        commit(store, started, number, global_step=global_step)
        store.finish_attempt(started.id, "lost", reason="driver_lost", message=None)
        counted.append(store.attempts_without_progress(job.id))
    assert counted == [0, 1, 0]
