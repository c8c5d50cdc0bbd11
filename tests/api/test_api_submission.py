"""Refused at submission, every fault with its pointer, all in one answer; accepted once per idempotency key."""

from __future__ import annotations

import copy
import threading

import pytest
from starlette.testclient import TestClient


def _change(spec: dict, path: str, value) -> dict:
    """A copy with one place changed; a value of ... deletes it."""
    changed = copy.deepcopy(spec)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    holder = changed
    for part in parents:
        holder = holder[part]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return changed


def _faults(answer) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    document = answer.json()
    assert document["code"] == "invalid_spec"
    assert answer.headers["content-type"] == "application/problem+json"
    return {fault["pointer"]: fault["detail"] for fault in document["errors"]}


TOP_K = {"recipe": "sdpo", "divergence": {"kind": "reverse_kl"}, "support": {"kind": "top_k", "k": 5000}}
CASES = {
    "unknown field": ("stages/0/problems_per_stp", 4, "/stages/0/problems_per_stp", "problems_per_step"),
    "unknown field at the root": ("evalution", {}, "/evalution", "evaluation"),
    "wrong type": ("defaults/steps", "many", "/defaults/steps", ""),
    "unknown recipe": ("stages/0/method/recipe", "grop", "/stages/0/method/recipe", "grpo"),
    "stage without a domain": ("stages/0/domain", ..., "/stages/0", "domain"),
    "zero steps": ("stages/1/steps", 0, "/stages/1/steps", ""),
    "negative rollouts": ("defaults/rollouts_per_problem", -1, "/defaults/rollouts_per_problem", ""),
    "no stages": ("stages", [], "/stages", ""),
    "top_k above the vocabulary": ("stages/1/method", TOP_K, "/stages/1/method", "96"),
    "context longer than the model": ("defaults/sampling/max_tokens", 4000, "", "2048"),
    "the root as a model folder": ("model/path", "/", "/model", "config.json"),
    "a missing model folder": ("model/path", "/nowhere/at/all", "/model/path", "/nowhere/at/all"),
    "two stages of one name": ("stages/1/name", "arithmetic", "/stages/1/name", "arithmetic"),
    "more GPUs than there are": ("compute/device", "cuda", "/compute", "GPU"),
    "a missing data file": ("stages/0/domain", {"kind": "dataset", "path": "none.jsonl"}, "/stages/0/domain", "none.jsonl"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_named_by_its_pointer(http, store, spec, name):
    path, value, pointer, words = CASES[name]
    faults = _faults(http.post("/v1/jobs", json=_change(spec, path, value)))
    at = [found for found in faults if found.startswith(pointer)]
    assert at, faults
    assert any(words in faults[found] for found in at), faults
    assert store.list_jobs(limit=1)[0] == []


def test_pickles_in_the_model_folder_are_refused(http, spec, model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    faults = _faults(http.post("/v1/jobs", json=spec))
    assert any(pointer.startswith("/model") and "safetensors" in detail for pointer, detail in faults.items()), faults


def test_every_fault_comes_in_one_answer(http, spec):
    """Faults of the schema, of the whole, and of the environment, in one file."""
    bad = copy.deepcopy(spec)
    bad["model"]["path"] = "/nowhere"
    bad["sed"] = 1
    bad["defaults"]["steps"] = 0
    bad["stages"] += [
        {"name": "third", "domain": {"kind": "arithmetic", "digit": 2}, "method": {"recipe": "grpo"}},
        {"name": "fourth", "domain": {"kind": "strings"}, "method": {"recipe": "nothing"}},
        {"name": "fifth", "domain": {"kind": "dataset", "path": "/none.jsonl"}, "method": {"recipe": "grpo"}},
        {"name": "arithmetic", "domain": {"kind": "tool_call"}, "method": {"recipe": "grpo"}},
    ]
    faults = _faults(http.post("/v1/jobs", json=bad))
    for pointer in ("/sed", "/defaults/steps", "/stages/2/domain", "/stages/3/method", "/stages/4/domain", "/stages/5", "/model/path"):
        assert any(found.startswith(pointer) for found in faults), (pointer, faults)


def test_a_cut_makes_no_fault_of_its_own(http, spec):
    """Taking out the one bad field must not bring up faults that the user did not make."""
    bad = _change(spec, "stages/0/method/recipe", "nothing")
    faults = _faults(http.post("/v1/jobs", json=bad))
    assert len(faults) == 1, faults


def test_yaml_is_accepted(http, model):
    text = f"name: demo\nmodel: {{path: {model}}}\nstages:\n  - {{name: a, domain: {{kind: arithmetic}}, method: {{recipe: grpo}}}}\n"
    text += "defaults: {sampling: {max_tokens: 32}, max_prompt_tokens: 128}\n"
    answer = http.post("/v1/jobs", content=text.encode(), headers={"Content-Type": "application/yaml"})
    assert answer.status_code == 201, answer.text


def test_a_submission_is_created(http, spec):
    answer = http.post("/v1/jobs", json={**spec, "labels": {"team": "a"}})
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert (job["name"], job["status"], job["seed"], job["labels"]) == ("demo", "queued", 7, {"team": "a"})
    assert [(stage["name"], stage["step"], stage["total_steps"]) for stage in job["stages"]] == [("arithmetic", 0, 20), ("strings", 0, 20)]
    assert job["progress"] == {"stages_done": 0, "stages_total": 2, "steps_done": 0, "steps_total": 40}
    assert http.get(job["links"]["self"]).json()["id"] == job["id"]


def test_a_dry_run_plans_and_stores_nothing(http, store, spec):
    answer = http.post("/v1/jobs?dry_run=true", json=spec)
    plan = answer.json()
    assert answer.status_code == 200
    assert plan["spec"]["checkpoint"] == {"every_steps": 20, "keep": 2}
    assert plan["total_steps"] == 40
    assert plan["total_rollouts"] == 40 * 16 * 8
    assert plan["evaluation_problems"] == 3 * 2 * 128
    assert plan["stages"][1]["composition"]["teacher"] == {"kind": "ema", "update_rate": 0.05, "every": "rollout_batch", "initial": None}
    assert plan["stages"][0]["composition"]["teacher"] is None
    assert plan["resources"] == {"needed": {"CPU": 3.0, "GPU": 0.0}, "cluster": {"CPU": 16.0, "GPU": 0.0}, "device": "cpu", "fits": True}
    assert len(plan["spec_hash"]) == 64
    assert store.list_jobs(limit=1)[0] == []


def test_the_plan_warns(http, spec):
    spec["evaluation"] = {"problems": 16}
    plan = http.post("/v1/jobs?dry_run=true", json=spec).json()
    assert any("16 problems" in warning for warning in plan["warnings"])


def test_a_dry_run_of_a_bad_file_lists_its_faults(http, spec):
    assert "/seed" in _faults(http.post("/v1/jobs?dry_run=true", json={**spec, "seed": -1}))


def test_replay_of_a_key_gives_the_same_job(http, store, spec):
    headers = {"Idempotency-Key": "key-1"}
    first = http.post("/v1/jobs", json=spec, headers=headers)
    again = http.post("/v1/jobs", json=spec, headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["id"] == again.json()["id"]
    assert again.headers["idempotent-replayed"] == "true" and "idempotent-replayed" not in first.headers
    assert len(store.list_jobs(limit=10)[0]) == 1


def test_a_key_with_another_body_is_422(http, store, spec):
    headers = {"Idempotency-Key": "key-1"}
    assert http.post("/v1/jobs", json=spec, headers=headers).status_code == 201
    answer = http.post("/v1/jobs", json={**spec, "seed": 8}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert len(store.list_jobs(limit=10)[0]) == 1


def test_without_a_key_each_submission_is_a_job(http, store, spec):
    ids = {http.post("/v1/jobs", json=spec).json()["id"] for _ in range(2)}
    assert len(ids) == 2


def test_one_key_from_many_threads_is_one_job(app, key, store, spec):
    answers = []

    def submit() -> None:
        http = TestClient(app, headers={"Authorization": f"Bearer {key}", "Idempotency-Key": "same"})
        answers.append(http.post("/v1/jobs", json=spec))

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [201] * 8
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(store.list_jobs(limit=10)[0]) == 1


@pytest.mark.parametrize("value", ["", "a b", "x" * 256])
def test_a_bad_idempotency_key_is_named(http, spec, value):
    answer = http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": value})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/header/idempotency-key"
