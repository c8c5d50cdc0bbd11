"""What an attempt checks before it starts, and what it does not do twice."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.errors import HoldfastError
from services.scheduler.attempt import check_data_files
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
