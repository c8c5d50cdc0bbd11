"""Folders, shards, snapshots, tied heads, blocks; what is refused, and with which field."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from planted import NAME, folder, sharded
from safetensors.torch import load_file, save_file

from cluster.transfer.snapshot import write_snapshot
from tests.trainer.tiny_policy import COMPOSITION, OPTIMIZER, TEMPERATURE, make_learner, save_tiny_model
from trainer.diagnostics.drift import measure_drift
from trainer.diagnostics.options import DriftOptions
from trainer.diagnostics.pairing import kind_of
from trainer.diagnostics.weight_files import DriftRefused
from trainer.state_files import write_json, write_tensors

PEBBLE = Path(__file__).resolve().parents[2] / "deploy" / "models" / "pebble"
CONFIG = {"model_type": "qwen3", "hidden_size": 8, "vocab_size": 20}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def weights(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        EMBEDDING: (20, 8),
        "model.layers.0.self_attn.q_proj.weight": (12, 8),
        "model.layers.0.self_attn.q_norm.weight": (4,),
        NAME: (24, 8),
        "model.layers.0.mlp.down_proj.weight": (8, 24),
    }
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def moved(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensors[name] + change for name, change in weights(9, scale=1e-2).items()}


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    base = weights(1)
    return folder(tmp_path / "before", base, CONFIG), folder(tmp_path / "after", moved(base), CONFIG)


def test_sharded_and_single_files_are_equal(pair, tmp_path):
    expected = measure_drift(*pair)
    shards = sharded(tmp_path / "shards", load_file(pair[1] / "model.safetensors"), 3)
    assert measure_drift(pair[0], shards).rows == expected.rows


@pytest.mark.parametrize("block_entries", [1, 40, 64])
def test_streamed_and_whole_are_equal(pair, block_entries):
    """One row at a time, a few, many: counts are the same, figures to rounding."""
    whole = measure_drift(*pair)
    streamed = measure_drift(*pair, options=DriftOptions(block_entries=block_entries))
    for row, expected in zip(streamed.rows, whole.rows, strict=True):
        assert row.masks == expected.masks
        assert row.counts.bf16_unchanged == expected.counts.bf16_unchanged
        defined = {name: value for name, value in expected.ratios().items() if value is not None}
        assert {name: value for name, value in row.ratios().items() if value is not None} == pytest.approx(
            defined, rel=1e-9, abs=1e-12
        )


def test_a_snapshot_against_its_folder(pair, tmp_path):
    """The head that a snapshot adds for a tied model is the embedding, counted once."""
    base = load_file(pair[0] / "model.safetensors")
    snapshot = write_snapshot(tmp_path / "snapshots", 3, [*moved(base).items(), (HEAD, moved(base)[EMBEDDING])])
    assert measure_drift(pair[0], snapshot).rows == measure_drift(*pair).rows
    both = write_snapshot(tmp_path / "snapshots", 0, [*base.items(), (HEAD, base[EMBEDDING])])
    assert measure_drift(both, snapshot).rows == measure_drift(*pair).rows


def checkpoint(path: Path, policy: dict[str, torch.Tensor]) -> Path:
    """A folder as a job writes it: the moments have the policy's shapes, the random state is no float, the teacher has a folder."""
    (path / "teacher").mkdir(parents=True)
    write_tensors(path / "policy.safetensors", policy)
    write_tensors(path / "optimizer.safetensors", {f"exp_avg.{name}": value + 7.0 for name, value in policy.items()})
    write_tensors(path / "rng.safetensors", {"rank0": torch.zeros(16, dtype=torch.uint8)})
    write_tensors(path / "teacher" / "own.safetensors", {name: value * 3.0 for name, value in policy.items()})
    write_json(path / "state.json", {"format": 1, "optimizer_steps": 4, "ranks": 1})
    return path


@pytest.mark.parametrize("anchored", [False, True])
def test_of_a_checkpoint_its_policy_is_compared(pair, tmp_path, anchored):
    base, expected = load_file(pair[0] / "model.safetensors"), measure_drift(*pair).rows
    first, last = checkpoint(tmp_path / "first", base), checkpoint(tmp_path / "last", moved(base))
    if anchored:
        write_tensors(last / "anchor.safetensors", base)
    assert measure_drift(pair[0], last).rows == measure_drift(first, pair[1]).rows == measure_drift(first, last).rows == expected


def test_what_the_learner_saves_to_resume_from_is_compared(tmp_path):
    """The names of the files are the learner's own: of its state and of its policy folder the weights are the same."""
    base = save_tiny_model(tmp_path / "model", tied=True)
    learner = make_learner(base)
    try:
        learner.begin_stage(COMPOSITION, OPTIMIZER, temperature=TEMPERATURE, reset_optimizer=True)
        with torch.no_grad():
            for parameter in learner.model.parameters():
                parameter.mul_(1.5)
        learner.save_state(tmp_path / "state")
        learner.save_policy(tmp_path / "policy")
    finally:
        learner.close()
    found = measure_drift(base, tmp_path / "state")
    assert found.metrics()["drift/base/relative_l2"] == pytest.approx(0.5, rel=1e-6)
    assert found.rows == measure_drift(base, tmp_path / "policy").rows


def test_a_head_of_its_own_is_measured(tmp_path):
    base = weights(1)
    old, new = base | {HEAD: base[EMBEDDING].clone()}, moved(base) | {HEAD: base[EMBEDDING] * 2}
    rows = {row.name: row for row in measure_drift(folder(tmp_path / "a", old), folder(tmp_path / "b", new)).rows}
    assert rows[HEAD].ratios()["relative_l2"] == pytest.approx(1.0)
    assert rows[HEAD].kind == "embedding"
    with pytest.raises(DriftRefused, match=r"lacks lm_head\.weight"):
        measure_drift(folder(tmp_path / "c", base), folder(tmp_path / "d", new))


def test_dtypes_may_differ(tmp_path):
    """A bf16 base against fp32 weights that round to it: nothing changed in bf16, something in the relative L2."""
    base = {name: value.bfloat16() for name, value in weights(1).items()}
    after = {name: value.float() * (1 + 2.0**-12) for name, value in base.items()}
    drift = measure_drift(folder(tmp_path / "a", base), folder(tmp_path / "b", after))
    figures = drift.metrics()
    assert figures["drift/base/bf16_unchanged_share"] == figures["drift/base/relative_unchanged_share"] == 1.0
    assert figures["drift/base/relative_l2"] == pytest.approx(2.0**-12, rel=1e-6)
    assert figures["drift/base/nss_median"] == pytest.approx(2.0**-12, rel=1e-6)


def test_stacked_experts_are_rows_of_their_own(tmp_path):
    stack = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    name, new = "model.layers.0.mlp.experts.down_proj", stack.clone()
    new[1] *= 2.0
    rows = measure_drift(folder(tmp_path / "a", {name: stack}), folder(tmp_path / "b", {name: new})).rows
    assert [row.name for row in rows] == [f"{name}[{place}]" for place in range(3)]
    assert [row.ratios()["nss"] for row in rows] == [0.0, pytest.approx(1.0), 0.0]


def test_odd_shapes(tmp_path):
    """A depthwise kernel is one matrix, a scalar and an empty tensor are rows without a spectrum."""
    base = {"a.conv.weight": torch.ones(6, 1, 4), "b.scalar": torch.tensor(2.0), "c.empty": torch.zeros(0, 3)}
    rows = measure_drift(
        folder(tmp_path / "a", base), folder(tmp_path / "b", {name: value * 3 for name, value in base.items()})
    ).rows
    assert [(row.name, row.shape) for row in rows] == [("a.conv.weight", (6, 4)), ("b.scalar", ()), ("c.empty", (0, 3))]
    assert [row.ratios()["nss"] for row in rows] == [pytest.approx(2.0), None, None]
    assert [row.ratios()["relative_l2"] for row in rows] == [pytest.approx(2.0), pytest.approx(2.0), None]


def test_side_by_side_is_the_same(pair, monkeypatch):
    """Matrices of a larger model are measured in several threads; order and figures stay."""
    expected = measure_drift(*pair)
    threads = torch.get_num_threads()
    monkeypatch.setattr("trainer.diagnostics.drift.SMALL_ENTRIES", 0)
    torch.set_num_threads(2)
    try:
        assert measure_drift(*pair) == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.self_attn.q_norm.weight", "norm"),
        ("model.layers.3.post_attention_layernorm.weight", "norm"),
        ("transformer.h.0.ln_1.weight", "norm"),
        ("model.layers.3.self_attn.o_proj.weight", "attention"),
        ("model.layers.3.mlp.experts.7.up_proj.weight", "mlp"),
        ("model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("model.layers.0.mixer.conv.weight", "other"),
    ],
)
def test_kinds(name, kind):
    assert kind_of(name) == kind


def refused(before: Path, after: Path) -> DriftRefused:
    with pytest.raises(DriftRefused) as caught:
        measure_drift(before, after)
    return caught.value


def test_refused_architectures_names_and_shapes(pair, tmp_path):
    base = weights(1)
    error = refused(pair[0], folder(tmp_path / "config", base, CONFIG | {"hidden_size": 16}))
    assert error.field == "config.json hidden_size" and "8 in" in error.detail and "16 in" in error.detail
    error = refused(pair[0], folder(tmp_path / "names", {name: value for name, value in base.items() if name != NAME}))
    assert error.field == "tensor names" and NAME in error.detail and str(tmp_path / "names") in error.detail.split("lacks")[0]
    error = refused(pair[0], folder(tmp_path / "more", base | {"model.layers.1.mlp.up_proj.weight": base[NAME].clone()}))
    assert "model.layers.1" in error.detail and str(pair[0]) in error.detail.split("lacks")[0]
    error = refused(pair[0], folder(tmp_path / "shapes", base | {NAME: base[NAME].T}))
    assert error.field == f"shape of {NAME}" and "[24, 8]" in error.detail and "[8, 24]" in error.detail


def test_refused_files(pair, tmp_path):
    assert refused(pair[0], tmp_path / "nowhere").field == "path"
    (tmp_path / "empty").mkdir()
    assert "no safetensors file" in refused(pair[0], tmp_path / "empty").detail
    (tmp_path / "text.safetensors").write_text("no weights")
    assert "not a safetensors file" in refused(pair[0], tmp_path / "text.safetensors").detail
    several = tmp_path / "several"
    several.mkdir()
    for name in ("a", "b"):
        save_file(weights(1), several / f"{name}.safetensors")
    detail = refused(pair[0], several).detail
    assert f"{several} holds 2 safetensors files (a.safetensors, b.safetensors)" in detail
    for allowed in ("a Hugging Face folder", "a checkpoint folder of a job", "a single .safetensors file"):
        assert allowed in detail and allowed in refused(pair[0], tmp_path / "empty").detail
    for number in range(9):
        save_file(weights(1), several / f"more-{number}.safetensors")
    named = "11 safetensors files (a.safetensors, b.safetensors, more-0.safetensors and 8 more)"
    assert named in refused(pair[0], several).detail


def test_a_checkpoint_that_was_not_written_to_its_end_is_refused(pair, tmp_path):
    """Its state.json is written last."""
    broken = checkpoint(tmp_path / "broken", weights(1))
    (broken / "state.json").unlink()
    detail = refused(pair[0], broken).detail
    assert "3 safetensors files (optimizer.safetensors, policy.safetensors, rng.safetensors)" in detail and "state.json" in detail


def test_refused_values(pair, tmp_path):
    error = refused(pair[0], folder(tmp_path / "ints", weights(1) | {NAME: torch.zeros(24, 8, dtype=torch.int8)}))
    assert error.field == "dtype" and NAME in error.detail and "I8" in error.detail
    broken = weights(1)
    broken[NAME][3, 3] = float("nan")
    assert refused(pair[0], folder(tmp_path / "nan", broken)).field == f"values of {NAME}"


@pytest.mark.parametrize("file", ["../outside.safetensors", "lost.safetensors"])
def test_refused_index(pair, tmp_path, file):
    """An index cannot point out of its folder, nor at a file that is not there."""
    save_file(weights(1), tmp_path / "outside.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(weights(1), file)}))
    assert file in refused(pair[0], shards).detail


@pytest.mark.parametrize(
    ("field", "value"), [("alpha", 0.0), ("alpha", 1.0), ("k", 0), ("energy", 1.5), ("max_k", 0), ("tolerance", -1.0)]
)
def test_refused_options(field, value):
    with pytest.raises(DriftRefused, match=field):
        DriftOptions(**{field: value})


def test_the_small_model_in_two_seconds(tmp_path):
    """Processor time, which other work on the machine does not lengthen much."""
    base = load_file(PEBBLE / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    after = folder(
        tmp_path / "after", {name: value + 1e-4 * torch.randn(value.shape, generator=generator) for name, value in base.items()}
    )
    threads = torch.get_num_threads()
    started = time.process_time()
    drift = measure_drift(PEBBLE, after)
    assert time.process_time() - started < 2.0
    assert torch.get_num_threads() == threads
    assert len([row for row in drift.rows if row.spectral]) == 29
    assert {row.spectral.method for row in drift.rows if row.spectral} == {"gram"}
