"""The sentence-embedding model of response drift is held to the checks of every model."""

from __future__ import annotations

import shutil

from admission_jobs import check, job, make_home

AT = "/evaluation/response_drift/embedding/path"


def with_embedding(path: str, **more):
    return job(evaluation={"problems": 8, "response_drift": {"embedding": {"path": path}} | more})


def test_a_sound_folder_is_found_and_remembered(tmp_path):
    home = make_home(tmp_path)
    shutil.copytree(home / "model", home / "minilm")
    (home / "minilm" / "modules.json").write_text("[]")  # of sentence-transformers; a list, and never read
    faults, resolved = check(home, with_embedding("minilm"))
    assert faults == {} and resolved["embedding"]["model_path"] == str((home / "minilm").resolve())
    assert check(home, job())[1].get("embedding") is None


def test_a_folder_that_is_not_there_or_could_execute_is_refused_at_its_field(tmp_path):
    home = make_home(tmp_path)
    faults, _ = check(home, with_embedding("nowhere"))
    assert faults == {(AT, "model_not_found"): "embedding model: model folder 'nowhere' does not exist"}
    shutil.copytree(home / "model", home / "minilm")
    (home / "minilm" / "pytorch_model.bin").write_bytes(b"x")
    faults, _ = check(home, with_embedding("minilm"))
    assert set(faults) == {(AT, "pickle")} and faults[AT, "pickle"].startswith("embedding model: pytorch_model.bin")
    assert check(home, with_embedding("minilm", when="never"))[0] == {}  # it is not used
