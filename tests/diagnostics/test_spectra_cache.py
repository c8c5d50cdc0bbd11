"""Spectra that are kept between measurements: the same figures, less work, never more than the bound."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.diagnostics import spectral_drift as module
from trainer.diagnostics.drift import measure_drift
from trainer.diagnostics.options import DriftOptions
from trainer.diagnostics.spectra_cache import SpectraCache, file_key

PEBBLE = Path(__file__).resolve().parents[2] / "deploy" / "models" / "pebble"


def moved(path: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(PEBBLE / "model.safetensors")
    save_file({name: value + 1e-3 * torch.randn(value.shape, generator=generator) for name, value in tensors.items()}, path)
    return path


@pytest.fixture
def counted(monkeypatch):
    """How often a spectrum is computed."""
    calls, by_gram = [], module.by_gram

    def by_gram_counted(blocks):
        calls.append(blocks.shape)
        return by_gram(blocks)

    by_gram_counted.__name__ = "by_gram"
    monkeypatch.setattr(module, "by_gram", by_gram_counted)
    return calls


def figures(drift):
    return drift.metrics("d"), [row.to_dict() for row in drift.rows]


def test_figures_are_identical_and_known_spectra_are_not_computed_again(tmp_path, counted):
    first, second, cache = moved(tmp_path / "a.safetensors", 1), moved(tmp_path / "b.safetensors", 2), SpectraCache()
    plain = [figures(measure_drift(PEBBLE, after)) for after in (first, second)]
    without = len(counted)
    counted.clear()
    assert [figures(measure_drift(PEBBLE, after, cache=cache)) for after in (first, second)] == plain
    assert len(counted) == without * 3 // 4  # base, a, b instead of base, a, base, b
    counted.clear()
    assert figures(measure_drift(PEBBLE, second, cache=cache)) == plain[1] and counted == []
    narrow = DriftOptions(k=3)
    assert figures(measure_drift(PEBBLE, first, cache=cache, options=narrow)) == figures(measure_drift(PEBBLE, first, options=narrow))


def test_it_holds_no_more_than_its_bound_and_goes_on_without_room(tmp_path, counted):
    after, cache = moved(tmp_path / "a.safetensors", 1), SpectraCache(max_bytes=400_000)
    plain = figures(measure_drift(PEBBLE, after))
    for _ in range(2):
        assert figures(measure_drift(PEBBLE, after, cache=cache)) == plain
    assert 0 < cache.bytes <= 400_000 and cache.hits > 0
    counted.clear()
    assert figures(measure_drift(PEBBLE, after, cache=SpectraCache(max_bytes=0))) == plain and counted


def test_a_file_that_was_written_again_is_another_one(tmp_path):
    path, cache = moved(tmp_path / "a.safetensors", 1), SpectraCache()
    measure_drift(PEBBLE, path, cache=cache)
    before = file_key(path, "x")
    shutil.copyfile(moved(tmp_path / "b.safetensors", 2), path)
    assert file_key(path, "x") != before
    assert figures(measure_drift(PEBBLE, path, cache=cache)) == figures(measure_drift(PEBBLE, path))


def test_what_is_not_wanted_any_more_is_forgotten(tmp_path):
    path, cache = moved(tmp_path / "a.safetensors", 1), SpectraCache()
    measure_drift(PEBBLE, path, cache=cache)
    whole = cache.bytes
    cache.retain([PEBBLE])
    assert cache.bytes == whole // 2
    cache.retain([])
    assert cache.bytes == 0
