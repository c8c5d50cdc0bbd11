"""Checkpoints on disk: sealed, verified byte by byte, pruned."""

from __future__ import annotations

import pytest

from services.weights.checkpoints import CheckpointError, prune, seal, staging_folder, verify


@pytest.fixture
def sealed(tmp_path):
    staged = staging_folder(tmp_path, "ckpt_1")
    (staged / "policy.safetensors").write_bytes(b"weights")
    (staged / "teacher").mkdir()
    (staged / "teacher" / "teacher.safetensors").write_bytes(b"teacher weights")
    digest = seal(staged, tmp_path / "ckpt_1", record={"cursor": {"step": 4}})
    return tmp_path / "ckpt_1", digest


def test_a_sealed_checkpoint_gives_back_its_record(sealed):
    folder, digest = sealed
    assert verify(folder, digest) == {"cursor": {"step": 4}}
    assert not (folder.parent / ".tmp-ckpt_1").exists()


def _flip_a_byte(folder):
    (folder / "teacher" / "teacher.safetensors").write_bytes(b"teacher weightz")


def _remove_a_file(folder):
    (folder / "policy.safetensors").unlink()


def _touch_the_manifest(folder):
    (folder / "MANIFEST.json").write_text((folder / "MANIFEST.json").read_text() + " ")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_flip_a_byte, r"teacher/teacher\.safetensors .*changed"),
        (_remove_a_file, r"lacks policy\.safetensors"),
        (_touch_the_manifest, "not the one that was committed"),
    ],
)
def test_damage_is_found_and_named(sealed, damage, said):
    folder, digest = sealed
    damage(folder)
    with pytest.raises(CheckpointError, match=said) as raised:
        verify(folder, digest)
    assert raised.value.reason == "checkpoint_damaged"


def test_prune_removes_left_overs_and_keeps_what_is_named(sealed):
    root = sealed[0].parent
    staging_folder(root, "ckpt_2")
    (root / "ckpt_0").mkdir()
    assert prune(root, ["ckpt_1"]) == [".tmp-ckpt_2", "ckpt_0"]
    assert [path.name for path in root.iterdir()] == ["ckpt_1"]
