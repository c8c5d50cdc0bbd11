"""/v1/studies: submission with every fault in its place, members as jobs, requests, records."""

from __future__ import annotations

import hashlib
import json
import shutil
import time

import pytest

from api.commands import study_file
from cluster.spec.study import StudySpec, expand
from services.jobs.study_records import read_records, record_text, write_records


@pytest.fixture
def study(spec) -> dict:
    """Two arms, one order, two seeds; no faults."""
    return {
        "name": "ablation",
        "base": spec,
        "arms": [{"name": "plain"}, {"name": "fast", "set": {"defaults.optimizer.lr": 1e-4}}],
        "orders": [{"name": "ab", "stages": ["arithmetic", "strings"], "seeds": [1, 2]}],
    }


def _faults(http, study, **changes) -> dict[str, str]:
    """Details by pointer, of a refused study."""
    answer = http.post("/v1/studies", json={**study, **changes})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_spec"), answer.text
    return {fault["pointer"]: fault["detail"] for fault in answer.json()["errors"]}


def _submit(http, study, **beside) -> dict:
    answer = http.post("/v1/studies", json={**study, **beside})
    assert answer.status_code == 201, answer.text
    return answer.json()


def _finish(store, settings, job_id: str, report: dict | None) -> None:
    """Let a queued job succeed, with a report in its run folder."""
    epoch = store.acquire_lease("me", 600.0)
    attempt = store.start_attempt(job_id, epoch=epoch)
    store.mark_running(attempt.id)
    folder = settings.run_dir(job_id)
    folder.mkdir(parents=True)
    if report is not None:
        (folder / "report.json").write_text(json.dumps(report))
    store.finish_attempt(attempt.id, "succeeded", reason=None, message=None)
    store.release_lease("me", epoch)


def test_members_are_jobs_with_the_arms_changes(http, study):
    made = _submit(http, study)
    assert (made["status"], made["counts"], made["num_members"]) == ("queued", {"queued": 4}, 4)
    assert [(m["arm"], m["order"], m["seed"]) for m in made["members"]] == [("plain", "ab", 1), ("fast", "ab", 1), ("plain", "ab", 2), ("fast", "ab", 2)]
    spec = http.get(f"/v1/jobs/{made['members'][3]['job_id']}/spec").json()
    assert (spec["name"], spec["seed"], spec["evaluation"]["seed"], spec["defaults"]["optimizer"]["lr"]) == ("ablation-fast-ab-2", 2, 7, 1e-4)
    assert spec["labels"] == {"study": "ablation", "arm": "fast", "order": "ab"}
    jobs = http.get("/v1/jobs", params={"order": "asc"}).json()["data"]
    assert [job["id"] for job in jobs] == [member["job_id"] for member in made["members"]]
    assert http.get("/v1/studies/ablation").json()["members"] == made["members"]
    page = http.get("/v1/studies").json()
    assert [(item["id"], item["members"]) for item in page["data"]] == [(made["id"], None)]


def test_a_dry_run_stores_nothing(http, study):
    answer = http.post("/v1/studies", params={"dry_run": "true"}, json=study)
    plan = answer.json()
    assert (answer.status_code, plan["num_members"], plan["total_steps"]) == (200, 4, 160)
    assert http.get("/v1/studies").json()["data"] == [] and http.get("/v1/jobs").json()["data"] == []


def test_the_digest_is_that_of_the_file_wherever_it_lies(http, study, model):
    study["base"]["model"] = {"path": model.name}
    made = _submit(http, study, folders=["/nowhere", str(model.parent)])
    assert [member["digest"] for member in made["members"]] == [member.digest for member in expand(StudySpec.model_validate(study))]
    job = http.get(f"/v1/jobs/{made['members'][0]['job_id']}/spec").json()
    assert job["model"]["path"] == str(model)


def test_two_arms_of_one_name(http, study):
    faults = _faults(http, study, arms=[{"name": "a"}, {"name": "b"}, {"name": "a"}])
    assert list(faults) == ["/arms/2/name"] and "'a' is the name of arms.0 already" in faults["/arms/2/name"]


def test_an_override_of_a_field_that_does_not_exist(http, study):
    faults = _faults(http, study, arms=[{"name": "a", "set": {"stages.strings.optimiser.lr": 1e-3, "stages.nope.steps": 2}}])
    assert set(faults) == {"/arms/0/set/stages.strings.optimiser.lr", "/arms/0/set/stages.nope.steps"}
    assert "unknown field 'optimiser'; did you mean 'optimizer'?" in faults["/arms/0/set/stages.strings.optimiser.lr"]
    assert "(at /stages/1/optimiser of the job of arm 'a', order 'ab')" in faults["/arms/0/set/stages.strings.optimiser.lr"]
    assert "has no stage 'nope'" in faults["/arms/0/set/stages.nope.steps"]


def test_an_empty_order_and_an_unknown_stage_in_another(http, study):
    orders = [{"name": "none", "stages": [], "seeds": [1]}, {"name": "odd", "stages": ["strings", "nix"], "seeds": [1]}]
    faults = _faults(http, study, orders=orders)
    assert set(faults) == {"/orders/0/stages", "/orders/1/stages"}
    assert "'nix' is not a stage of the base job; there are arithmetic, strings" in faults["/orders/1/stages"]


def test_a_method_that_cannot_learn_under_an_override(http, study):
    arms = [{"name": "plain"}, {"name": "single", "set": {"stages.arithmetic.rollouts_per_problem": 1}}]
    faults = _faults(http, study, arms=arms)
    assert list(faults) == ["/arms/1/set/stages.arithmetic.rollouts_per_problem"]
    assert "has nothing to be compared with" in faults["/arms/1/set/stages.arithmetic.rollouts_per_problem"]


def test_faults_of_the_base_job_are_told_once_and_there(http, study):
    study["base"]["stages"][0]["method"] = {"recipe": "grppo"}
    study["base"]["model"] = {"path": "/nowhere/at/all"}
    faults = _faults(http, study, arms=[{"name": "a"}, {"name": "a"}], bogus=1)
    assert set(faults) == {"/base/stages/0/method/recipe", "/base/model/path", "/arms/1/name", "/bogus"}


def test_a_fault_that_only_an_order_has(http, study):
    stage = study["base"]["stages"][1]
    stage["replay"] = {"share": 0.2, "stages": ["arithmetic"]}
    orders = [*study["orders"], {"name": "ba", "stages": ["strings", "arithmetic"], "seeds": [1]}]
    faults = _faults(http, study, orders=orders)
    assert list(faults) == ["/orders/1/stages"] and "of the job of order 'ba'" in faults["/orders/1/stages"]


def test_claims_about_arms_figures_and_orders_that_do_not_exist(http, study):
    claim = {"name": "a", "claim": "c", "figure": "gain", "arm": "fast", "against": "plain"}
    hypotheses = [{**claim, "expect": "higher", "arm": "slow"}, {**claim, "expect": "similar", "name": "b"}]
    comparisons = [{**claim, "against": "none"}, {**claim, "orders": ["ba"]}, {**claim, "name": "c", "figure": "gian"}, {**claim, "name": "d", "expect": "higher"}]
    faults = _faults(http, study, hypotheses=hypotheses, comparisons=comparisons)
    assert set(faults) == {"/hypotheses/0/arm", "/hypotheses/1", "/comparisons/0/against", "/comparisons/1/name", "/comparisons/1/orders", "/comparisons/2", "/comparisons/3/expect"}
    assert "'none' is not an arm; there are fast, plain" in faults["/comparisons/0/against"] and "'gian' is not known; allowed are gain" in faults["/comparisons/2"]


def test_comparisons_may_be_added_later_and_change_no_study(http, study):
    comparison = {"name": "later", "claim": "c", "figure": "gain", "arm": "fast", "against": "plain"}
    first = _submit(http, study)
    second = _submit(http, {**study, "comparisons": [comparison]})
    assert second["spec_hash"] == first["spec_hash"] and [member["digest"] for member in second["members"]] == [member["digest"] for member in first["members"]]
    (shown,) = http.get(f"/v1/studies/{second['id']}/report").json()["comparisons"]
    assert (shown["name"], shown["n"]["pairs"], shown["difference"]["mean"]) == ("later", 0, None)


@pytest.mark.parametrize("missing", ["base", "arms", "name"])
def test_a_required_part_that_is_missing(http, study, missing):
    del study[missing]
    assert f"/{missing}" in _faults(http, study)


def test_an_idempotency_key_gives_the_same_study(http, study):
    first = http.post("/v1/studies", json=study, headers={"Idempotency-Key": "k"})
    again = http.post("/v1/studies", json=study, headers={"Idempotency-Key": "k"})
    assert again.json()["id"] == first.json()["id"] and again.headers["idempotent-replayed"] == "true"
    other = http.post("/v1/studies", json={**study, "name": "x"}, headers={"Idempotency-Key": "k"})
    assert other.json()["code"] == "idempotency_key_reused"


def test_pause_resume_and_cancel(http, study):
    made = _submit(http, study)
    assert http.post(f"/v1/studies/{made['id']}/pause").json()["counts"] == {"paused": 4}
    assert http.post("/v1/studies/ablation/resume").json()["status"] == "queued"
    assert http.post("/v1/studies/ablation/cancel", json={"mode": "now"}).json()["status"] == "cancelled"
    refused = http.post("/v1/studies/ablation/pause")
    assert (refused.status_code, refused.json()["code"], refused.json()["allowed"]) == (409, "illegal_transition", ["resume"])
    assert http.post("/v1/studies/ablation/resume").json()["counts"] == {"queued": 4}
    fresh = http.get("/v1/studies/ablation").json()["members"]
    assert {member["job_id"] for member in fresh}.isdisjoint(member["job_id"] for member in made["members"])
    assert http.get("/v1/studies/nothing").json()["code"] == "not_found"


def test_a_seed_that_no_job_can_have(http, study):
    study["orders"][0]["seeds"] = [0, -1, 2**31]
    assert set(_faults(http, study)) == {"/orders/0/seeds/1", "/orders/0/seeds/2"}


def test_a_great_many_seeds_are_refused_at_once(http, study):
    study["orders"][0]["seeds"] = list(range(15_000))
    begun = time.monotonic()
    assert "/orders/0/seeds" in _faults(http, study)
    assert time.monotonic() - begun < 5.0


def test_labels_that_no_job_can_have(http, study):
    study["base"]["labels"] = {f"label{index}": "x" for index in range(31)}
    faults = _faults(http, study)
    assert list(faults) == ["/base/labels"] and "32" in faults["/base/labels"]
    study["base"]["labels"] = {}
    study["arms"] = [{"name": "plain"}, {"name": "odd", "set": {"labels.size": 5}}]
    assert list(_faults(http, study)) == ["/arms/1/set/labels.size"], "told although the first arm's job differs in nothing else"


@pytest.mark.parametrize("field", ["evaluation", "labels", "model", "defaults", "compute", "stages.strings.method", "stages.strings.domain"])
@pytest.mark.parametrize("value", [5, None, "x", []])
def test_an_override_by_something_that_is_no_object(http, study, field, value):
    study["arms"].append({"name": "odd", "set": {field: value}})
    assert list(_faults(http, study)) == [f"/arms/2/set/{field}"]


def test_other_folders_are_another_submission(http, study, tmp_path):
    (tmp_path / "other").mkdir()
    first = http.post("/v1/studies", json={**study, "folders": [str(tmp_path)]}, headers={"Idempotency-Key": "f"})
    again = http.post("/v1/studies", json={**study, "folders": [str(tmp_path / "other")]}, headers={"Idempotency-Key": "f"})
    assert (first.status_code, again.json()["code"]) == (201, "idempotency_key_reused")


def test_a_resume_that_is_sent_again_is_no_error(http, study):
    made = _submit(http, study)
    http.post(f"/v1/studies/{made['id']}/cancel", json={"mode": "now"})
    first, again = (http.post(f"/v1/studies/{made['id']}/resume") for _ in range(2))
    assert (first.json()["counts"], again.status_code, again.json()["counts"]) == ({"queued": 4}, 202, {"queued": 4})


REPORT = {"format": 2, "score_matrix": {"means": [[1 / 3, 0.5]]}, "comparisons": {"large": 1}, "stages": []}


def _record_of(file: dict, position: int = 0, **changes) -> dict:
    member = expand(StudySpec.model_validate(file))[position]
    return {
        "format": 1, "study": file["name"], "arm": member.arm, "order": member.order, "seed": member.seed, "digest": member.digest,
        "status": "succeeded", "report": {"format": 2}, **changes,
    }


def test_a_record_stands_in_for_the_member_that_it_names_alone(http, study):
    records = [_record_of(study), _record_of(study, 1, seed=9), _record_of(study, 2, arm="fast"), _record_of(study, 3, order="ba")]
    made = _submit(http, study, records=[*records, _record_of(study, 3, study="other")])
    assert [member["recorded"] for member in made["members"]] == [True, False, False, False]
    assert made["unmatched_records"] == ["fast/ab-9", "fast/ab-2", "fast/ba-2", "fast/ab-2"]


def test_a_record_of_a_run_that_failed_by_its_method_is_a_result_and_one_that_a_machine_ended_is_none(http, study):
    records = [
        _record_of(study, 0, status="failed", reason="non_finite_loss", report=None),
        _record_of(study, 1, status="failed", reason="cluster_lost", report=None),
        _record_of(study, 2, status="cancelled", reason="cancelled", report=None),
    ]
    made = _submit(http, study, records=records)
    assert [(member["recorded"], member["status"]) for member in made["members"]][:3] == [(True, "failed"), (False, "queued"), (False, "queued")]
    assert made["members"][0]["reason"] == "non_finite_loss"
    assert http.get(f"/v1/studies/{made['id']}/records").json()["data"] == [records[0]]


@pytest.fixture
def data_study(study, tmp_path) -> dict:
    """The study with a data set in its first stage."""
    rows = [{"problem": f"{number} + 1 =", "answer": str(number + 1)} for number in range(600)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = {"kind": "dataset", "path": "sums.jsonl", "evaluation_fraction": 0.5}
    study["base"]["stages"][0] |= {"domain": domain}
    return study


def test_a_record_of_other_data_does_not_stand_in(http, data_study, store, settings, tmp_path):
    made = _submit(http, data_study, folders=[str(tmp_path)])
    _finish(store, settings, made["members"][0]["job_id"], REPORT)
    record = http.get("/v1/studies/ablation/records").json()["data"][0]
    assert record["inputs"] == {"/stages/0/domain": hashlib.sha256((tmp_path / "sums.jsonl").read_bytes()).hexdigest()}

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(tmp_path / "sums.jsonl", elsewhere)
    assert _submit(http, data_study, folders=[str(elsewhere)], records=[record])["counts"] == {"queued": 3, "succeeded": 1}
    lines = (elsewhere / "sums.jsonl").read_text().splitlines(keepends=True)
    (elsewhere / "sums.jsonl").write_text("".join(lines[1:]))
    other = _submit(http, data_study, folders=[str(elsewhere)], records=[record])
    assert (other["counts"], other["unmatched_records"]) == ({"queued": 4}, ["plain/ab-1"])
    del record["inputs"]
    assert _submit(http, data_study, folders=[str(elsewhere)], records=[record])["counts"]["succeeded"] == 1, "of before the hashes were kept"


@pytest.mark.parametrize("changes", [{"digest": ["x"]}, {"status": ["succeeded"]}, {"seconds": "5"}, {"message": {}}, {"arm": 3}])
def test_a_record_with_a_value_of_another_type_is_refused(http, study, changes):
    faults = _faults(http, study, records=[_record_of(study), _record_of(study, 1, **changes)])
    assert list(faults) == ["/records/1"] and f"its {next(iter(changes))} is" in faults["/records/1"]


@pytest.mark.parametrize("report", [{"stages": [{"name": "arithmetic"}]}, {"stages": 5}, {"score_matrix": {"domains": [], "problems_digest": 7}}])
def test_a_record_that_no_report_can_be_made_of_is_refused(http, study, report):
    faults = _faults(http, study, records=[_record_of(study), _record_of(study, 1, report=report)])
    assert list(faults) == ["/records/1"] and "no report can be made of it" in faults["/records/1"]


def test_records_carry_a_study_to_another_machine(http, study, store, settings, tmp_path):
    made = _submit(http, study)
    first = made["members"][0]
    _finish(store, settings, first["job_id"], REPORT)
    http.post(f"/v1/jobs/{made['members'][1]['job_id']}/cancel")
    records = http.get("/v1/studies/ablation/records").json()["data"]
    assert [(r["arm"], r["status"]) for r in records] == [("plain", "succeeded"), ("fast", "cancelled")]
    assert records[0]["report"] == {"format": 2, "score_matrix": {"means": [[0.333333, 0.5]]}, "stages": []}
    assert records[0]["digest"] == first["digest"] and records[0]["seconds"] >= 0.0
    lines = http.get("/v1/studies/ablation/records", headers={"Accept": "application/x-ndjson"}).text.splitlines()
    assert [json.loads(line) for line in lines] == records

    assert len(write_records(records, tmp_path / "records")) == 2
    assert write_records(records, tmp_path / "records") == []
    known = read_records(tmp_path / "records")
    assert (tmp_path / "records" / "plain" / "ab-1.json").read_text() == record_text(records[0])

    strange = {**records[0], "digest": "0" * 64, "seed": 9}
    again = _submit(http, study, records=[*known, strange])
    assert [member["recorded"] for member in again["members"]] == [True, False, False, False]
    assert again["counts"] == {"queued": 3, "succeeded": 1} and again["unmatched_records"] == ["plain/ab-9"]
    assert http.get(f"/v1/studies/{again['id']}/records").json()["data"] == [records[0]]

    # the same file with another base model is another run
    assert len(records[0]["model_sha256"]) == 64
    other = _submit(http, study, records=[{**records[0], "model_sha256": "0" * 64}])
    assert other["counts"] == {"queued": 4} and other["unmatched_records"] == ["plain/ab-1"]


def test_a_record_that_is_none_is_refused(http, study):
    assert "it has no format, study" in _faults(http, study, records=[{"arm": "a"}])["/records/0"]


def test_a_study_with_many_records_is_no_too_large_body(http, study):
    record = {"format": 1, "study": "x", "arm": "a", "order": "o", "seed": 1, "digest": "0" * 64, "status": "succeeded", "report": {"cosines": [0.1234] * 30_000}}
    records = [record | {"seed": seed} for seed in range(8)]
    assert len(json.dumps(records)) > 1_500_000
    assert len(_submit(http, study, records=records)["unmatched_records"]) == 8
    assert http.post("/v1/jobs", json={**study["base"], "padding": "x" * 1_500_000}).json()["code"] == "body_too_large"


def test_the_model_is_hashed_and_each_kind_of_member_checked_once(http, study, monkeypatch):
    from services.jobs import admission

    calls = []
    real = admission.check_model
    monkeypatch.setattr(admission, "check_model", lambda *args: calls.append(args) or real(*args))
    study["orders"][0]["seeds"] = list(range(40))
    assert _submit(http, study)["num_members"] == 80
    assert len(calls) == 1


def test_a_study_file_is_checked_without_a_service(study, settings, tmp_path):
    plan = study_file.check(study, [], [tmp_path], settings)
    assert (plan.num_members, plan.num_recorded) == (4, 0)


def test_the_client_speaks_of_studies(client, study, tmp_path):
    made = client.submit_study(study, folders=[tmp_path])
    assert client.validate_study(study)["num_members"] == 4
    assert client.study("ablation")["id"] == client.studies(name="ablation")["data"][0]["id"] == made["id"]
    assert client.study_spec(made["id"])["arms"] == study["arms"]
    assert client.study_records(made["id"]) == []
    assert client.pause_study(made["id"])["status"] == "paused"
    assert client.resume_study(made["id"])["status"] == "queued"
    assert client.cancel_study(made["id"])["status"] == "cancelled"
    assert client.wait_study(made["id"], timeout_s=5)["counts"] == {"cancelled": 4}
