"""Where the Gram matrix is accurate, where it is not, and that the fallback takes over there."""

from __future__ import annotations

import pytest
import torch
from planted import planted, rotated

from trainer.diagnostics.row_blocks import RowBlocks
from trainer.diagnostics.spectra import by_gram, by_qr

DECADES = torch.logspace(0, -12, 13, dtype=torch.float64)
BLOCKS = 7 * 13


@pytest.fixture(scope="module")
def decades():
    """Singular values 1, 0.1, ... 1e-12."""
    return planted(60, 13, DECADES)


def test_gram_keeps_to_its_bound_and_loses_small_values(decades):
    found = by_gram(RowBlocks.of(decades[0], BLOCKS))
    errors = (found.values - DECADES).abs()
    assert (errors <= found.value_errors()).all()
    assert (errors[:5] / DECADES[:5] < 1e-7).all()  # down to 1e-4 of the largest: better than seven digits
    assert (errors[9:] / DECADES[9:]).max() > 1.0  # from 1e-9 on: no digit left
    assert found.rank() < 9


def test_qr_has_them_all(decades):
    found = by_qr(RowBlocks.of(decades[0], BLOCKS))
    errors = (found.values - DECADES).abs()
    assert (errors <= found.value_errors()).all()
    assert found.noise < 1e-14
    assert (errors[:12] / DECADES[:12] < 1e-4).all()
    assert found.rank() == 13


@pytest.mark.parametrize("method", [by_gram, by_qr])
def test_both_agree_with_a_dense_svd_on_an_ordinary_matrix(method):
    matrix = torch.randn(200, 50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = method(RowBlocks.of(matrix, 50 * 64))
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(found.values, values, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(
        (found.vectors * vectors.T).sum(0).abs(), torch.ones(50, dtype=torch.float64), rtol=1e-10, atol=0.0
    )


def test_fallback_for_a_shift_below_the_noise_of_the_gram_matrix(measured):
    """Only the value 1e-9 moves, to 3e-9: a Gram matrix sees noise of 1e-8, QR the shift."""
    values = torch.tensor([1.0, 0.5, 1e-9], dtype=torch.float64)
    old, left, right = planted(30, 3, values)
    new = left * torch.tensor([1.0, 0.5, 3e-9], dtype=torch.float64) @ right.T
    spectral = measured(old, new, k=2).spectral
    assert spectral.method == "qr"
    assert spectral.nss == pytest.approx(2e-9 / values.norm().item(), rel=1e-4)
    assert spectral.nss_error < 1e-14


def test_fallback_for_a_subspace_among_small_values(measured):
    """The split lies between 1e-6 and 5e-7 of the largest value, where the squares are 7.5e-13 apart."""
    values = torch.tensor([1.0, 1e-6, 5e-7, 1e-7], dtype=torch.float64)
    old, left, right = planted(30, 12, values)
    new = left * values @ rotated(right, inside=1, outside=2, degrees=0.01).T
    spectral = measured(old, new, k=2).spectral
    assert spectral.method == "qr"
    assert spectral.right_angle_deg == pytest.approx(0.01, rel=1e-4)
    assert spectral.angle_error_deg < 1e-5


def test_gram_suffices_for_ordinary_weights(measured):
    generator = torch.Generator().manual_seed(4)
    old = torch.randn(96, 64, generator=generator, dtype=torch.float64)
    new = old + 1e-5 * torch.randn(96, 64, generator=generator, dtype=torch.float64)
    row = measured(old, new, k=8)
    assert row.spectral.method == "gram"
    before, after = torch.linalg.svd(old), torch.linalg.svd(new)
    assert row.spectral.nss == pytest.approx(((after.S - before.S).norm() / before.S.norm()).item(), rel=1e-7)
    cosine = torch.linalg.svdvals(before.U[:, :8].T @ after.U[:, :8])[-1].clamp(max=1.0)
    assert row.spectral.left_angle_deg == pytest.approx(torch.rad2deg(torch.acos(cosine)).item(), rel=1e-5)
    assert row.spectral.angle_error_deg < 1e-3 * row.spectral.left_angle_deg


def test_no_gap_says_so(measured):
    """Two equal values at the split: the leading span is anybody's, and the bound is a right angle."""
    values = torch.tensor([2.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    old, _, _ = planted(20, 10, values)
    noise = 1e-7 * torch.randn(20, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spectral = measured(old, old + noise, k=2).spectral
    assert spectral.gap == pytest.approx(0.0, abs=1e-12)
    assert spectral.angle_error_deg > 1.0
