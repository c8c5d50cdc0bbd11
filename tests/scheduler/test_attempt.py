"""What an attempt checks before it starts, and what it does not do twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.errors import HoldfastError
from services.jobs.model_files import folder_sha256
from services.scheduler.attempt import Attempt, check_data_files, check_model_folders
from services.scheduler.progress import Cursor, Progress
from services.scheduler.ranks import Ranks
from services.scheduler.train_function import JobRun


def test_a_data_file_that_changed_since_submission_is_refused(tmp_path):
    data = tmp_path / "a.jsonl"
    data.write_text("{}\n")
    resolved = {"datasets": {"a.jsonl": {"path": str(data), "sha256": hashlib.sha256(data.read_bytes()).hexdigest()}}}
    check_data_files(resolved)
    check_data_files({"datasets": {"hub/id": {"revision": "abc", "sha256": None}}})
    data.write_text('{"more": 1}\n')
    with pytest.raises(HoldfastError, match=r"a\.jsonl.*not the one that was submitted") as raised:
        check_data_files(resolved)
    assert raised.value.reason == "dataset_changed"


def _model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"old weights")
    return folder


@pytest.mark.parametrize("changed", ["base", "other", "embedding"])
def test_a_model_folder_that_changed_since_submission_is_refused(tmp_path, changed):
    folders = {name: _model(tmp_path / name) for name in ("base", "other", "embedding")}
    resolved = {
        "model_path": str(folders["base"]),
        "model_sha256": folder_sha256(folders["base"]),
        "teachers": {"models/other": str(folders["other"])},
        "teacher_sha256": {"models/other": folder_sha256(folders["other"])},
        "embedding": {"model_path": str(folders["embedding"]), "model_sha256": folder_sha256(folders["embedding"])},
    }
    check_model_folders(resolved)
    check_model_folders({"model_revision": "abc", "teacher_revisions": {"hub/id": "abc"}, "embedding": {"model_revision": "abc"}})
    (folders[changed] / "model.safetensors").write_bytes(b"new weights")
    with pytest.raises(HoldfastError, match=f"{changed}.*not the one that was submitted") as raised:
        check_model_folders(resolved)
    assert raised.value.reason == "model_changed"
    for file in folders[changed].iterdir():
        file.unlink()
    folders[changed].rmdir()
    with pytest.raises(HoldfastError, match=f"{changed}.*not the one that was submitted"):
        check_model_folders(resolved)


def test_an_attempt_refuses_a_changed_base_model_before_it_reserves_anything(tmp_path, monkeypatch):
    import ray

    folder = _model(tmp_path / "base")
    attempt = object.__new__(Attempt)
    attempt.settings = SimpleNamespace(database="sqlite:///store.db")
    attempt.resolved = {"model_path": str(folder), "model_sha256": "0" * 64}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}])
    with pytest.raises(HoldfastError) as raised:
        attempt.run()
    assert raised.value.reason == "model_changed"


@pytest.mark.parametrize(("kind", "steps_since", "commits"), [("stage", 0, []), ("resume", 0, ["stage"]), ("stage", 1, ["stage"]), (None, 0, ["stage"])])
def test_a_stage_end_that_is_committed_already_is_not_committed_again(kind, steps_since, commits):
    run, done = object.__new__(JobRun), []
    run.cursor, run.checkpoint_kind, run.run_dir, run.ranks = Cursor(stage_index=1, step=9, global_step=20), kind, Path("run"), Ranks(0, 1)
    run.progress = Progress(run.cursor, incarnation=2, checkpoint_every=5)
    for _ in range(steps_since):
        run.progress.advance(applied=True, finite=True)
    run.learner = SimpleNamespace(save_policy=lambda folder: done.append("policy"))
    run.commit, run._close_stage = done.append, lambda stage, folder: done.append("closed")
    run._finish_stage(SimpleNamespace(index=1, name="strings"))
    assert done == [*(["policy"] if commits else []), *commits, "closed"]
