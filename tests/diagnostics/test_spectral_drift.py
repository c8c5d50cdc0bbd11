"""Spectrum, angles and the update's rank against what was planted: nothing here is computed by the code under test."""

from __future__ import annotations

import pytest
import torch
from planted import orthonormal, planted, rotated

GAPPED = torch.tensor([10.0, 9.0, 8.0, 1.0, 0.5, 0.25], dtype=torch.float64)
SHAPES = [(40, 12), (12, 40), (16, 16)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("degrees", [1e-5, 0.01, 3.0, 40.0, 89.0])
def test_planted_right_angle(measured, shape, degrees):
    """The right span of the three leading values is turned by theta; the left one and the spectrum stay."""
    old, left, right = planted(*shape, GAPPED)
    turned = rotated(right, inside=1, outside=4, degrees=degrees)
    spectral = measured(old, left * GAPPED @ turned.T, k=3).spectral
    assert spectral.right_angle_deg == pytest.approx(degrees, rel=1e-6)
    assert spectral.left_angle_deg == pytest.approx(0.0, abs=1e-8)
    assert spectral.nss < 1e-14
    assert spectral.subspace_similarity == pytest.approx(
        (2.0 + torch.cos(torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))).item() ** 2) / 3
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_planted_left_angle(measured, shape):
    old, left, right = planted(*shape, GAPPED)
    row = measured(old, rotated(left, inside=0, outside=3, degrees=7.5) * GAPPED @ right.T, k=3)
    assert row.spectral.left_angle_deg == pytest.approx(7.5, rel=1e-9)
    assert row.spectral.right_angle_deg == pytest.approx(0.0, abs=1e-8)
    assert row.max_angle_deg == row.spectral.left_angle_deg


def test_turning_inside_the_span_is_no_angle(measured):
    old, left, right = planted(30, 12, GAPPED)
    flat = torch.tensor([8.0, 8.0, 8.0, 1.0, 0.5, 0.25], dtype=torch.float64)
    old = left * flat @ right.T
    turned = rotated(right, inside=0, outside=2, degrees=33.0)
    assert measured(old, left * flat @ turned.T, k=3).max_angle_deg == pytest.approx(0.0, abs=1e-8)
    assert measured(old, left * flat @ turned.T, k=3).spectral.nss == pytest.approx(0.0, abs=1e-14)


def test_nss_of_a_moved_spectrum(measured):
    old, left, right = planted(20, 12, GAPPED)
    moved = GAPPED + torch.tensor([0.3, 0.0, -0.4, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert measured(old, left * moved @ right.T).spectral.nss == pytest.approx(0.5 / GAPPED.norm().item(), rel=1e-10)


def test_nss_sorts(measured):
    """Values that change places are no shift of the spectrum."""
    old, left, right = planted(20, 12, GAPPED)
    swapped = GAPPED[[1, 0, 2, 3, 4, 5]]
    assert measured(old, left * swapped @ right.T).spectral.nss == pytest.approx(0.0, abs=1e-14)


@pytest.mark.parametrize("scale", [1.0 + 2.0**-20, 1.5, 0.25])
def test_scaled_weights(measured, scale):
    old, _, _ = planted(40, 12, torch.linspace(3.0, 1.0, 12, dtype=torch.float64))
    row = measured(old, old * scale, k=4)
    assert row.spectral.nss == pytest.approx(abs(scale - 1.0), rel=1e-8)
    assert row.ratios()["relative_l2"] == pytest.approx(abs(scale - 1.0), rel=1e-8)
    assert row.max_angle_deg == pytest.approx(0.0, abs=1e-8)
    assert row.ratios()["principal_overlap"] == 1.0


def test_stable_rank(measured):
    old, _, _ = planted(24, 10, torch.linspace(3.0, 1.0, 10, dtype=torch.float64))
    left, right = orthonormal(24, 3, seed=5), orthonormal(10, 3, seed=6)
    rank_one = old + 1e-4 * torch.outer(left[:, 0], right[:, 0])
    assert measured(old, rank_one).spectral.stable_rank == pytest.approx(1.0, rel=1e-9)
    update = torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64)
    assert measured(old, old + 1e-4 * (left * update @ right.T)).spectral.stable_rank == pytest.approx(6.0 / 4.0, rel=1e-9)


def test_identical_weights(measured):
    old, _, _ = planted(24, 10, torch.linspace(3.0, 1.0, 10, dtype=torch.float64))
    row = measured(old, old.clone())
    figures = row.ratios()
    zeros = ("relative_l2", "nss", "max_angle_deg", "principal_update_share", "low_update_share")
    assert {name: figures[name] for name in zeros} == dict.fromkeys(zeros, 0.0)
    ones = ("bf16_unchanged_share", "relative_unchanged_share", "principal_overlap", "subspace_similarity")
    assert {name: figures[name] for name in ones} == dict.fromkeys(ones, 1.0)
    nothing = ("stable_rank", "update_in_principal_share", "update_in_low_share")
    assert {name: figures[name] for name in nothing} == dict.fromkeys(nothing)


def test_k_by_energy_cap_and_fixed(measured):
    """Squares 100, 81, 64, 1, .25, .0625 of 246.3125: 90 % are 221.7, which two (181) do not hold and three (245) do."""
    old, left, right = planted(20, 12, GAPPED)
    new = left * (GAPPED * 1.01) @ right.T
    assert measured(old, new).spectral.k == 3
    assert measured(old, new, energy=0.7).spectral.k == 2
    assert measured(old, new, max_k=2).spectral.k == 2
    assert measured(old, new, k=5).spectral.k == 5
    assert measured(old, new, k=99).spectral.k == 6  # what the rank allows
    assert measured(old, new, k=3).spectral.gap == pytest.approx(0.7, rel=1e-9)


def test_a_zero_matrix_has_no_directions(measured):
    row = measured(torch.zeros(4, 3), torch.ones(4, 3))
    assert row.spectral is None and row.masks is None
    assert row.ratios()["relative_l2"] is None
    assert row.ratios()["bf16_unchanged_share"] == 0.0


def test_vectors_have_no_spectrum(measured):
    row = measured(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]), name="model.norm.weight")
    assert row.kind == "norm" and row.spectral is None and row.masks is None
    assert row.ratios()["relative_l2"] == pytest.approx(0.1)
    assert row.counts.bf16_unchanged == 1
