"""Snapshot files: what is read is what was written, whole or not at all."""

from __future__ import annotations

import pytest
import torch

from cluster.transfer.snapshot import prune, read_snapshot, snapshot_path, snapshot_shapes, snapshot_version, write_snapshot


def test_tensors_come_back_as_float32_with_tied_ones_twice(tmp_path):
    embedding = torch.randn(6, 4)
    tensors = [("embed", embedding), ("half", torch.ones(3, dtype=torch.bfloat16)), ("turned", embedding.T), ("lm_head.weight", embedding)]
    path = write_snapshot(tmp_path / "new", 12, tensors)
    stored = read_snapshot(path)
    assert path == snapshot_path(tmp_path / "new", 12)
    assert {name: tuple(t.shape) for name, t in stored.items()} == snapshot_shapes(path)
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())
    assert torch.equal(stored["embed"], embedding) and torch.equal(stored["lm_head.weight"], embedding)
    assert torch.equal(stored["turned"], embedding.T)
    assert snapshot_version(path) == 12


def test_a_name_that_comes_twice_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="came twice"):
        write_snapshot(tmp_path, 1, [("a", torch.ones(2)), ("a", torch.ones(2))])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_snapshot(tmp_path, 1, [("a", torch.ones(2))])
    monkeypatch.setattr("cluster.transfer.snapshot.os.replace", lambda *paths: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_snapshot(tmp_path, 1, [("a", torch.zeros(2))])
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot-0000000001.safetensors"]
    assert read_snapshot(snapshot_path(tmp_path, 1))["a"].tolist() == [1.0, 1.0]


def test_prune_keeps_the_newest_by_number_and_other_files(tmp_path):
    big = 11 << 33  # more digits than the padding
    for version in (3, 20, big):
        write_snapshot(tmp_path, version, [("a", torch.ones(1))])
    (tmp_path / "other.safetensors").write_bytes(b"")
    (tmp_path / ".snapshot-0000000004.safetensors.123").write_bytes(b"half")
    mapped = read_snapshot(snapshot_path(tmp_path, 3))
    assert prune(tmp_path, keep=2) == [snapshot_path(tmp_path, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [snapshot_path(tmp_path, 20).name, snapshot_path(tmp_path, big).name, "other.safetensors"]
    )
    assert mapped["a"].tolist() == [1.0]
    assert prune(tmp_path / "missing", keep=2) == []


def test_a_publisher_writes_a_snapshot_for_the_teacher_without_touching_an_engine(tmp_path):
    from services.weights.publisher import Publisher
    from tests.tiny_models import PlainLearner

    learner = PlainLearner(tied=True)
    publisher = Publisher(learner, rank=0, world_size=1, workers=[], backend="shared_memory", folder=tmp_path, client=object())
    for version in (4, 5, 6):
        learner.perturb(seed=version)
        path = publisher.snapshot(version)
    assert path == snapshot_path(tmp_path, 6) == publisher.last_snapshot
    assert sorted(found.name for found in tmp_path.iterdir()) == [snapshot_path(tmp_path, 5).name, path.name]
    stored = read_snapshot(path)
    for name, tensor in learner.named_full_parameters():
        assert torch.equal(stored[name], tensor)
