"""A job file against the machine: each thing that is wrong is found, together with all the others."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from admission_jobs import CPU, check, job, make_home, stage, tensors


@pytest.fixture
def home(tmp_path) -> Path:
    return make_home(tmp_path)


def data_stage(**domain) -> dict:
    return stage(domain={"kind": "dataset", "path": "data.jsonl"} | domain)


def test_a_good_job_has_no_faults_and_is_resolved_by_content(home):
    spec = job(stages=[data_stage()])
    found, resolved = check(home, spec)
    assert found == {}
    assert resolved["model_path"] == str(home / "model")
    data = resolved["datasets"]["data.jsonl"]
    assert data["path"] == str(home / "data.jsonl") and data["train"] + data["evaluation"] == data["rows"] == 60
    first = resolved["model_sha256"]
    (home / "moved").mkdir()
    for path in (home / "model").iterdir():
        (home / "moved" / path.name).write_bytes(path.read_bytes())
    assert check(home, job(model={"path": "moved"}))[1]["model_sha256"] == first, "the hash is of the content, wherever it lies"
    (home / "model" / "config.json").write_text(json.dumps({"vocab_size": 128, "max_position_embeddings": 256, "x": 1}))
    assert check(home, spec)[1]["model_sha256"] != first


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("pytorch_model.bin", b"x", "pickle"),
        ("optimizer.pt", b"x", "pickle"),
        ("sub/rng.pkl", b"x", "pickle"),
        ("modeling_x.py", b"x", "remote_code"),
        ("tokenizer_config.json", b'{"auto_map": {}}', "remote_code"),
        ("config.json", b'{"auto_map": {"AutoModel": "x.Y"}, "vocab_size": 128}', "remote_code"),
        ("model.safetensors", tensors(cut=1), "model_damaged"),
        ("model.safetensors", b"\x00", "model_damaged"),
        ("model.safetensors", struct.pack("<Q", 3) + b"{]}", "model_damaged"),
        ("config.json", b"[]", "model_damaged"),
        ("model.safetensors.index.json", b'{"weight_map": {"w": "model-2.safetensors"}}', "model_incomplete"),
    ],
)
def test_a_model_folder_that_could_execute_or_is_not_whole_is_refused(home, file, content, code):
    path = home / "model" / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    found, resolved = check(home, job())
    assert list(found) == [("/model/path", code)]
    assert "model_sha256" not in resolved


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_a_model_folder_lacks_is_named(home, file):
    (home / "model" / file).unlink()
    found, _ = check(home, job())
    assert [code for _, code in found] == ["model_incomplete"] and Path(file).suffix in next(iter(found.values()))


def test_a_model_folder_that_is_not_there(home):
    found, _ = check(home, job(model={"path": "nowhere"}))
    assert found == {("/model/path", "model_not_found"): "model folder 'nowhere' does not exist"}
    found, _ = check(home, job(model={"path": "data.jsonl"}))
    assert "is not a folder" in found["/model/path", "model_not_found"]


def test_support_against_vocabulary_and_engine(home):
    method = {"recipe": "sdpo", "support": {"kind": "top_k", "k": 129}}
    found, _ = check(home, job(defaults={"max_prompt_tokens": 64, "sampling": {"max_tokens": 32}}, stages=[stage(method=method, max_prompt_tokens=10)]))
    assert "129 is larger than the model's vocabulary of 128" in found["/stages/0/method", "top_k_too_large"]
    (home / "model" / "config.json").write_text(json.dumps({"vocab_size": 200_000, "max_position_embeddings": 4096}))
    for k, source, refused in ((2000, "rollout", True), (2000, "teacher", False), (20, "rollout", False)):
        method = {"recipe": "sdpo", "support": {"kind": "top_k", "k": k, "support_from": source}}
        found, _ = check(home, job(stages=[stage(method=method)]))
        assert bool(found) == refused


def test_context_prompt_and_completion_must_fit_the_model(home):
    method = {"recipe": "sdpo", "context": {"kind": "feedback", "max_context_tokens": 32}}
    found, _ = check(home, job(stages=[stage(method=method, max_prompt_tokens=64)]))
    assert found == {}, "64 + 32 + 128 for the template's own words + 32 is exactly 256"
    found, _ = check(home, job(stages=[stage(method=method, max_prompt_tokens=65)]))
    assert "65 + context 160 + max_tokens 32 = 257 tokens, the model has 256" in found["/stages/0/max_prompt_tokens", "context_too_long"]
    found, _ = check(home, job(evaluation={"max_tokens": 193}))
    assert list(found) == [("/evaluation/max_tokens", "context_too_long")]


@pytest.mark.parametrize(
    ("content", "domain", "pointer", "words"),
    [
        ('{"problem": "a", "answer": "b"}\n{"problem": "a"\n', {}, "path", "line 2"),
        ('{"problem": "a", "answer": "b"}\n[1]\n', {}, "path", "line 2"),
        ("", {}, "", "empty"),
        ('{"problem": "a", "answer": "b"}\n', {"columns": {"answer": "label"}}, "columns/answer", "label"),
        ('{"problem": "a", "answer": "b", "part": "train"}\n' * 9, {"columns": {"split": "part"}}, "columns/split", "evaluation split is empty"),
        ('{"problem": "a", "answer": "b", "part": "test"}\n', {"columns": {"split": "part"}}, "columns/split", "'test'"),
    ],
)
def test_a_data_set_that_cannot_be_used(home, content, domain, pointer, words):
    (home / "data.jsonl").write_text(content)
    found, _ = check(home, job(stages=[data_stage(**domain)]))
    assert found and all(where.startswith(f"/stages/0/domain/{pointer}".rstrip("/")) for where, _ in found)
    assert words in " ".join(found.values())


def test_a_data_file_that_is_not_there(home):
    found, _ = check(home, job(stages=[data_stage(path="none.jsonl")]))
    assert [where for where, _ in found] == ["/stages/0/domain/path"] and "none.jsonl" in next(iter(found.values()))


@pytest.mark.parametrize(
    ("compute", "cluster", "pointer"),
    [
        ({"device": "cuda", "learners": 8}, {"cpus": 32, "gpus": 4}, "/compute"),
        ({"device": "cuda"}, CPU, "/compute"),
        ({"learners": 99}, CPU, "/compute"),
        ({"weight_transfer": "nccl"}, CPU, "/compute/weight_transfer"),
        ({"weight_transfer": "ipc", "learners": 2}, {"cpus": 32, "gpus": 4}, "/compute/weight_transfer"),
        ({"device": "cuda", "learners": 2}, {"cpus": 32, "gpus": 4}, None),
        ({"device": "cuda", "learners": 99}, None, None),
        ({"learners": 2}, {"CPU": 16, "GPU": 0}, None),
    ],
)
def test_roles_against_the_cluster(home, compute, cluster, pointer):
    found, _ = check(home, job(compute=compute), cluster)
    assert [where for where, _ in found] == ([pointer] if pointer else [])


def test_a_budget_with_which_nothing_can_be_learnt(home):
    alone = {"rollouts_per_problem": 1}
    sibling = {"recipe": "sdpo", "context": {"kind": "sibling_solution", "feedback": "never", "max_context_tokens": 20}}
    found, _ = check(home, job(stages=[stage("a", **alone), stage("b", method=sibling, **alone), stage("c", method={"recipe": "sft"}, **alone)]))
    assert sorted(found) == [("/stages/0/rollouts_per_problem", "cannot_learn"), ("/stages/1/rollouts_per_problem", "cannot_learn")]


def test_one_name_is_one_domain(home):
    other = {"name": "s", "domain": {"kind": "strings"}}
    found, _ = check(home, job(evaluation={"domains": [other]}))
    assert list(found) == [("/evaluation/domains/0/name", "duplicate_name")]
    same = {"name": "s", "domain": {"kind": "arithmetic"}}
    assert check(home, job(evaluation={"domains": [same]}))[0] == {}


def test_no_fault_stops_the_search_for_the_others(home):
    (home / "model" / "old.bin").write_bytes(b"")
    (home / "data.jsonl").write_text("oops\n")
    spec = job(
        stages=[stage("a", rollouts_per_problem=1), data_stage(), stage("c", method={"recipe": "sdpo"}, max_prompt_tokens=999)],
        compute={"learners": 99},
    )
    found, _ = check(home, spec)
    assert {code for _, code in found} == {"pickle", "cannot_learn", "dataset_invalid", "context_too_long", "insufficient_resources"}


def test_an_id_is_pinned_or_the_answer_says_why_not(home, monkeypatch):
    import huggingface_hub

    class Hub:
        def model_info(self, name, *, revision, timeout):
            if name == "away/model":
                raise OSError("no route to host")
            files = [type("File", (), {"rfilename": "model.safetensors" if name == "good/model" else "model.bin"})()]
            return type("Info", (), {"sha": "f" * 40, "siblings": files, "config": {}})()

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert check(home, job(model={"id": "good/model", "revision": "main"})) == ({}, {"model_revision": "f" * 40, "datasets": {}})
    found, _ = check(home, job(model={"id": "away/model"}))
    assert "no route to host" in found["/model/id", "model_unreachable"]
    assert list(check(home, job(model={"id": "old/model"}))[0]) == [("/model/id", "model_incomplete")]


def test_admission_loads_nothing_heavy():
    code = "import services.jobs.admission, services.jobs.faults, sys; print({'torch', 'ray', 'vllm', 'transformers', 'mlflow', 'sqlalchemy'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert found.stdout.strip() == "set()"
