"""Given checkpoints against the base model: each refusal with the field and both values, and what the row keeps."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
from admission_jobs import check, job, make_home

from services.jobs.given_policies import given_sha256
from services.scheduler.model_source import check_given, given_folders

AT = "/stages/0/policy/path"
CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 128,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_theta": 10000.0},
}
SHAPES = {"model.embed_tokens.weight": [4, 2], "model.norm.weight": [2]}


def weights(shapes: dict[str, list[int]], *, dtype: str = "F32") -> bytes:
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def tokenizer(*entries: str) -> str:
    return json.dumps({"model": {"vocab": {text: token for token, text in enumerate(entries)}}, "added_tokens": []})


@pytest.fixture
def home(tmp_path) -> Path:
    """A base model and a copy of it called ``given``."""
    home = make_home(tmp_path)
    (home / "model" / "config.json").write_text(json.dumps(CONFIG))
    (home / "model" / "tokenizer.json").write_text(tokenizer("a", "b", "c"))
    (home / "model" / "model.safetensors").write_bytes(weights(SHAPES))
    shutil.copytree(home / "model", home / "given")
    return home


def test_an_index_whose_files_are_no_names(home):
    (home / "given" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": ["model.safetensors"], "b": "model.safetensors"}}))
    faults = check(home, given_job())[0]
    assert list(faults) == [(AT, "model_incomplete")]


@pytest.mark.parametrize("changes", [{"shape": None}, {"shape": "4x2"}, {"dtype": 4}, {"data_offsets": [0, "32"]}])
def test_a_header_without_the_shape_of_a_tensor(home, changes):
    entry = {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]} | changes
    text = json.dumps({"model.norm.weight": {name: value for name, value in entry.items() if value is not None}}).encode()
    (home / "given" / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(32))
    faults = check(home, given_job())[0]
    assert list(faults) == [(AT, "model_damaged")]


def given_job(path: str = "given"):
    return job(stages=[{"name": "s", "domain": {"kind": "arithmetic"}, "policy": {"path": path}}])


def faults(home: Path, path: str = "given") -> dict[tuple[str, str], str]:
    return check(home, given_job(path))[0]


def test_a_copy_is_taken_and_the_row_has_its_folder_and_hash(home):
    found, resolved = check(home, given_job())
    assert found == {}
    assert resolved["policies"] == {"given": str(home / "given")}
    assert resolved["policy_sha256"] == {"given": given_sha256(home / "given")} and len(resolved["policy_sha256"]["given"]) == 64


def test_what_other_trainers_leave_beside_the_weights_is_neither_read_nor_hashed(home):
    before = given_sha256(home / "given")
    (home / "given" / "optimizer.pt").write_bytes(b"\x80pickle")
    (home / "given" / "training_args.bin").write_bytes(b"\x80pickle")
    assert faults(home) == {} and given_sha256(home / "given") == before
    (home / "given" / "model.safetensors").write_bytes(weights(SHAPES)[:-1] + b"\x01")
    assert given_sha256(home / "given") != before


def test_a_folder_that_is_not_there(home):
    assert "'nowhere' does not exist" in faults(home, "nowhere")[AT, "model_not_found"]


def test_weights_in_a_pickle_alone_are_refused(home):
    (home / "given" / "model.safetensors").rename(home / "given" / "pytorch_model.bin")
    detail = faults(home)[AT, "model_incomplete"]
    assert "no model.safetensors" in detail and "pickles" in detail


def test_an_adapter_and_remote_code_are_refused(home):
    (home / "given" / "config.json").write_text(json.dumps(CONFIG | {"auto_map": {}}))
    assert "auto_map" in faults(home)[AT, "remote_code"]
    (home / "given" / "config.json").rename(home / "given" / "adapter_config.json")
    assert "adapter" in faults(home)[AT, "model_incomplete"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("model_type", "llama"), ("hidden_size", 16), ("num_hidden_layers", 3), ("num_attention_heads", 4), ("vocab_size", 129), ("tie_word_embeddings", False)],
)
def test_another_architecture_is_named_by_its_first_differing_field_with_both_values(home, field, value):
    (home / "given" / "config.json").write_text(json.dumps(CONFIG | {field: value}))
    detail = faults(home)[AT, "architecture_differs"]
    assert f"{field} is {value!r}, the base model's is {CONFIG[field]!r}" in detail


def test_the_rotary_base_is_compared_in_both_spellings_and_an_unstated_field_is_not(home):
    plain = {key: value for key, value in CONFIG.items() if key not in ("rope_parameters", "tie_word_embeddings")}
    (home / "given" / "config.json").write_text(json.dumps(plain | {"rope_theta": 10000.0}))
    assert faults(home) == {}
    (home / "given" / "config.json").write_text(json.dumps(plain | {"rope_theta": 5e5}))
    assert "rope_theta is 500000.0, the base model's is 10000.0" in faults(home)[AT, "architecture_differs"]


@pytest.mark.parametrize(
    ("shapes", "dtype", "words"),
    [
        ({"model.norm.weight": [2]}, "F32", "lacks 1 of the base model's 2 tensors, the first is model.embed_tokens.weight"),
        (SHAPES | {"model.extra": [1]}, "F32", "has 1 tensors that the base model has not, the first is model.extra"),
        (SHAPES | {"model.norm.weight": [3]}, "F32", "has model.norm.weight of shape [3], the base model's is [2]"),
        (SHAPES, "I32", "model.embed_tokens.weight in I32"),
    ],
)
def test_tensors_that_are_missing_strange_of_another_shape_or_no_floats(home, shapes, dtype, words):
    (home / "given" / "model.safetensors").write_bytes(weights(shapes, dtype=dtype))
    assert words in faults(home)[AT, "weights_differ"]


def test_a_tied_head_and_old_rotary_buffers_are_no_difference(home):
    more = {"lm_head.weight": [4, 2], "model.layers.0.self_attn.rotary_emb.inv_freq": [1]}
    (home / "given" / "model.safetensors").write_bytes(weights(SHAPES | more))
    assert faults(home) == {}


def test_a_missing_shard_is_named(home):
    (home / "given" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}))
    assert "model-00001-of-00002.safetensors" in faults(home)[AT, "model_incomplete"]


def test_another_vocabulary_is_named_by_its_first_differing_id(home):
    (home / "given" / "tokenizer.json").write_text(tokenizer("a", "x", "c"))
    detail = faults(home)[AT, "vocabulary_differs"]
    assert "1 ids differ, the first is 1, b'x' there and b'b' in the base model" in detail


def test_a_checkpoint_without_a_tokenizer_is_read_with_the_base_s(home):
    (home / "given" / "tokenizer.json").unlink()
    assert faults(home) == {}


def test_at_the_load_a_checkpoint_that_changed_since_is_refused(home):
    from cluster.errors import StageError

    spec, (_, resolved) = given_job(), check(home, given_job())
    folder = Path(given_folders(spec.resolved_stages(), resolved)["given"])
    assert folder == home / "given"
    known = resolved["policy_sha256"]["given"]
    check_given(home / "model", folder, known)
    (folder / "model.safetensors").write_bytes(weights(SHAPES)[:-1] + b"\x01")
    with pytest.raises(StageError, match="not the one that was submitted") as raised:
        check_given(home / "model", folder, known)
    assert raised.value.reason == "policy_changed"
    check_given(home / "model", folder, None)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 9}))
    with pytest.raises(StageError, match="hidden_size is 9") as raised:
        check_given(home / "model", folder, None)
    assert raised.value.reason == "policy_unusable"
