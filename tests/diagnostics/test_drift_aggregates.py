"""Medians, weights and pooled ratios by hand; the flat metrics; the result as JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from planted import folder

from trainer.diagnostics.drift import KIND_METRICS, METRICS, measure_drift

Q, UP, DOWN, NORM = (
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.norm.weight",
)


@pytest.fixture
def drift(tmp_path):
    """Scaled by 1.5, 2 and 4, so that each NSS and relative L2 is 0.5, 1, 3; the norm's scale stays."""
    base = {
        Q: torch.eye(2),
        UP: torch.diag(torch.tensor([2.0, 1.0, 1.0])),
        DOWN: torch.diag(torch.tensor([3.0, 2.0, 2.0, 1.0])),
        NORM: torch.ones(4),
    }
    after = {Q: base[Q] * 1.5, UP: base[UP] * 2, DOWN: base[DOWN] * 4, NORM: base[NORM]}
    return measure_drift(folder(tmp_path / "a", base), folder(tmp_path / "b", after))


def test_aggregates_by_hand(drift):
    found = drift.aggregates["all"]["nss"]
    assert (found.count, found.median, found.max) == (3, pytest.approx(1.0), pytest.approx(3.0))
    assert found.mean == pytest.approx(4.5 / 3)
    assert found.weighted == pytest.approx((4 * 0.5 + 9 * 1.0 + 16 * 3.0) / 29)
    assert found.pooled is None
    mlp = drift.aggregates["mlp"]["nss"]
    assert (mlp.count, mlp.median, mlp.weighted) == (2, pytest.approx(2.0), pytest.approx((9 + 48) / 25))
    assert set(drift.aggregates) == {"all", "attention", "mlp", "norm"}


def test_pooled_ratios_count_vectors_and_medians_do_not(drift):
    """Squared norms before: 2, 6, 18, 4 (the norm's); of the changes: 0.5, 6, 162, 0."""
    found = drift.aggregates["all"]["relative_l2"]
    assert found.pooled == pytest.approx(math.sqrt(168.5 / 30))
    assert found.median == pytest.approx(1.0) and found.count == 3
    assert drift.aggregates["norm"]["relative_l2"].median == 0.0
    # unchanged: the zeros of the three matrices, 2 + 6 + 12, and the vector's 4, of 29 + 4
    assert drift.aggregates["all"]["bf16_unchanged_share"].pooled == pytest.approx(24 / 33)


def test_metrics(drift):
    found = drift.metrics("drift/stage")
    assert found["drift/stage/nss_median"] == pytest.approx(1.0)
    assert found["drift/stage/relative_l2"] == pytest.approx(math.sqrt(168.5 / 30))
    assert found["drift/stage/mlp/nss_median"] == pytest.approx(2.0)
    assert {name.removeprefix("drift/stage/") for name in found if name.count("/") == 2} == set(METRICS)
    assert {f"drift/stage/attention/{name}" for name in KIND_METRICS} <= set(found)
    assert "drift/stage/norm/nss_median" not in found
    assert all(type(value) is float and math.isfinite(value) for value in found.values())


def test_as_json(drift):
    found = json.loads(json.dumps(drift.to_dict(), allow_nan=False))
    by_name = {row["name"]: row for row in found["matrices"]}
    assert by_name[UP]["nss"] == pytest.approx(1.0) and by_name[UP]["shape"] == [3, 3]
    assert by_name[UP]["k"] == 3 and by_name[UP]["method"] in ("gram", "qr")
    assert "nss" not in by_name[NORM] or by_name[NORM]["nss"] is None
    assert found["options"]["alpha"] == 0.3
    assert found["aggregates"]["all"]["nss"]["weighted"] == pytest.approx(59 / 29)


def test_frozen_and_repeatable(drift):
    with pytest.raises(dataclasses.FrozenInstanceError):
        drift.rows = ()
    assert measure_drift(drift.before, drift.after) == drift


def test_most_moved(drift):
    assert [row.name for row in drift.most_moved(2)] == [DOWN, UP]


def test_nothing_changed(drift):
    same = measure_drift(drift.before, drift.before).metrics()
    assert same["drift/base/relative_l2"] == same["drift/base/nss_max"] == same["drift/base/max_angle_deg_max"] == 0.0
    assert same["drift/base/bf16_unchanged_share"] == same["drift/base/principal_overlap"] == 1.0
    assert "drift/base/stable_rank_median" not in same and "drift/base/update_in_principal_share" not in same
