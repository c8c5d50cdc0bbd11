"""``holdfast drift``: two folders, a series, JSON, and refusals. No service runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
PEBBLE = ROOT / "deploy" / "models" / "pebble"


@pytest.fixture
def scaled(tmp_path):
    """``scaled(factor)``: pebble's weights times a factor, in a folder."""

    def write(factor: float) -> Path:
        folder = tmp_path / f"times-{factor}"
        folder.mkdir()
        save_file(
            {name: value * factor for name, value in load_file(PEBBLE / "model.safetensors").items()},
            folder / "model.safetensors",
        )
        return folder

    return write


def test_json(holdfast, scaled):
    result = holdfast("drift", PEBBLE, scaled(1.5), "-o", "json", "--k", "4")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["aggregates"]["all"]["nss"]["median"] == pytest.approx(0.5, rel=1e-6)
    assert {row.get("k") for row in found["matrices"]} == {4, None}


def test_series_and_text(holdfast, scaled):
    half, double = scaled(1.5), scaled(2.0)
    found = json.loads(holdfast("drift", PEBBLE, half, "--series", double, "-o", "json").stdout)
    assert [each["after"] for each in found["comparisons"]] == [str(half), str(double)]
    assert found["comparisons"][1]["aggregates"]["all"]["relative_l2"]["pooled"] == pytest.approx(1.0, rel=1e-6)
    text = holdfast("drift", PEBBLE, half, "--series", double, "--top", "3").stdout
    assert "5.000e-01" in text and "1.000e+00" in text and "the 3 of 46 tensors that moved most" in text


def test_checkpoints_of_a_job_are_compared_by_their_policy(holdfast, scaled, tmp_path):
    """As files beside each other are: moments that are no weights, a random state, and what says that the folder is whole."""
    folders = [scaled(factor) for factor in (1.0, 1.5, 2.0)]
    for folder in folders[1:]:
        weights = folder / "model.safetensors"
        save_file({f"exp_avg.{name}": value for name, value in load_file(weights).items()}, folder / "optimizer.safetensors")
        save_file({"rank0": torch.zeros(8, dtype=torch.uint8)}, folder / "rng.safetensors")
        (folder / "state.json").write_text(json.dumps({"format": 1, "optimizer_steps": 4, "ranks": 1}))
        weights.rename(folder / "policy.safetensors")
    result = holdfast("drift", folders[0], folders[1], "--series", folders[2], "-o", "json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["comparisons"]
    assert [each["aggregates"]["all"]["relative_l2"]["pooled"] for each in found] == pytest.approx([0.5, 1.0], rel=1e-6)
    found = json.loads(holdfast("drift", folders[1], folders[2], "-o", "json").stdout)
    assert found["aggregates"]["all"]["relative_l2"]["pooled"] == pytest.approx(1 / 3, rel=1e-6)


def test_out_writes_the_series_from_the_first_and_from_the_one_before(holdfast, scaled, tmp_path):
    half, double = scaled(1.5), scaled(2.0)
    result = holdfast("drift", PEBBLE, half, "--series", double, "--k", "4", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert found["checkpoints"] == [str(half), str(double)]
    assert [item["relative_l2"] for item in found["from_first"]] == pytest.approx([0.5, 1.0], rel=1e-6)
    assert [item["relative_l2"] for item in found["from_previous"]] == pytest.approx([0.5, 1 / 3], rel=1e-6)
    assert [item["nss"] for item in found["from_previous"]] == pytest.approx([0.5, 1 / 3], rel=1e-6)
    assert [item["max_angle_deg"] for item in found["from_first"]] == pytest.approx([0.0, 0.0], abs=1e-3)
    for name in ("relative_l2", "nss", "max_angle_deg", "bf16_unchanged_share"):
        image = (tmp_path / "out" / f"{name}.png").read_bytes()
        assert image.startswith(b"\x89PNG") and f"{name}.png" in result.output.replace("\n", "")


def test_an_architecture_that_differs_anywhere_in_a_series_is_refused_with_field_and_both_values(holdfast, scaled, tmp_path):
    good, other = scaled(1.5), scaled(2.0)
    config = json.loads((PEBBLE / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"num_attention_heads": 8}))
    result = holdfast("drift", PEBBLE, good, "--series", other, "--out", tmp_path / "out", "-o", "json")
    assert result.exit_code == 2
    (fault,) = json.loads(result.stdout)["error"]["faults"]
    assert fault["pointer"] == "config.json num_attention_heads"
    assert f"4 in {PEBBLE}, 8 in {other}" in fault["detail"]
    assert not (tmp_path / "out").exists()


def test_refusals_name_the_field(holdfast, tmp_path, scaled):
    result = holdfast("drift", PEBBLE, tmp_path / "nowhere", "-o", "json")
    assert result.exit_code == 2
    (fault,) = json.loads(result.stdout)["error"]["faults"]
    assert fault["pointer"] == "path" and "nowhere" in fault["detail"]
    small = tmp_path / "small"
    small.mkdir()
    save_file({"model.norm.weight": torch.ones(3)}, small / "model.safetensors")
    result = holdfast("drift", PEBBLE, small)
    assert result.exit_code == 2 and "tensor names" in result.output
    several = tmp_path / "several"
    several.mkdir()
    for name in ("one", "two"):
        save_file({"model.norm.weight": torch.ones(3)}, several / f"{name}.safetensors")
    result = holdfast("drift", PEBBLE, several, "-o", "json")
    assert result.exit_code == 2
    (fault,) = json.loads(result.stdout)["error"]["faults"]
    assert fault["pointer"] == "path" and "one.safetensors, two.safetensors" in fault["detail"]
    assert "checkpoint folder of a job" in fault["detail"]
    result = holdfast("drift", PEBBLE, scaled(1.0), "--alpha", "1.5")
    assert result.exit_code == 2 and "alpha" in result.output


def test_help_loads_no_torch():
    program = "import sys, api.cli; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )
