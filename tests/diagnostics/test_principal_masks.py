"""Masks, thresholds and bf16 rules by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from planted import planted

from trainer.diagnostics.selection import largest

BASE = torch.tensor(
    [
        [16.0, 8.0, 4.0, 2.0],
        [8.0, 4.0, 2.0, 1.0],
        [4.0, 2.0, 1.0, 0.5],
        [2.0, 1.0, 0.5, 0.25],
    ]
)
"""The outer product of (4, 2, 1, 0.5) with itself: rank 1, so that its reconstruction is the matrix."""


def test_masks_of_a_four_by_four_matrix_by_hand(measured):
    """alpha = 3/16. Principal mask: 16, 8, 8. Low mask: the three smallest, 0.25, 0.5, 0.5.

    The update doubles nothing but: (0,0) 16 -> 18 (principal), (3,3) 0.25 -> 0.5 (low), (1,1) 4 -> 5 (neither), and
    (0,1) 8 -> 8.001, which bf16 does not see.
    """
    new = BASE.clone()
    new[0, 0], new[3, 3], new[1, 1], new[0, 1] = 18.0, 0.5, 5.0, 8.001
    row = measured(BASE, new, k=1, alpha=3 / 16)
    masks, figures = row.masks, row.ratios()
    assert (masks.principal_before, masks.low) == (3, 3)
    assert (masks.principal_updated, masks.low_updated) == (1, 1)
    assert row.counts.bf16_unchanged == 13
    assert figures["principal_update_share"] == pytest.approx(1 / 3)
    assert figures["update_in_principal_share"] == pytest.approx(1 / 3)
    assert figures["low_update_share"] == pytest.approx(1 / 3)
    assert figures["update_in_low_share"] == pytest.approx(1 / 3)
    assert figures["principal_baseline"] == pytest.approx(3 / 16)
    assert figures["bf16_unchanged_share"] == pytest.approx(13 / 16)


def test_overlap_of_the_masks_of_both_by_hand(measured):
    """After: the outer product of (4, 2, 1, 0.5) and (2, 4, 1, 0.5), whose three largest entries are 16 at (0,1), 8 at (0,0), 8 at (1,1).

    Shared with 16 at (0,0), 8 at (0,1), 8 at (1,0): two of three.
    """
    new = torch.outer(torch.tensor([4.0, 2.0, 1.0, 0.5]), torch.tensor([2.0, 4.0, 1.0, 0.5]))
    row = measured(BASE, new, k=1, alpha=3 / 16)
    assert (row.masks.principal_before, row.masks.principal_after, row.masks.principal_both) == (3, 3, 2)
    assert row.ratios()["principal_overlap"] == pytest.approx(2 / 3)


def test_the_mask_is_of_the_reconstruction(measured):
    """diag(3, 2, 1) with k = 1 keeps the 3 alone; the low mask reads the matrix itself."""
    old = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])) + 0.0
    new = old.clone()
    new[1, 1] = 2.5
    row = measured(old, new, k=1, alpha=1 / 16)
    assert (row.masks.principal_before, row.masks.principal_updated) == (1, 0)
    assert row.masks.low == 13  # zeros tie: all belong
    row = measured(old, new, k=2, alpha=2 / 16)
    assert (row.masks.principal_before, row.masks.principal_updated) == (2, 1)


@pytest.mark.parametrize(
    ("old", "new", "bitwise", "relative"),
    [
        (1.0, 1.0 + 2.0**-8, True, False),  # half a step of bf16 goes to even, 1; 0.39 % is more than 0.1 %
        (1.0, 1.0 + 2.0**-8 + 2.0**-16, False, False),  # just above the half
        (1.0, 1.0 + 2.0**-10, True, True),  # 0.098 %
        (1.0, 1.0 + 1.2e-3, True, False),
        (1.0 + 2.0**-8 - 2.0**-16, 1.0 + 2.0**-8 + 2.0**-16, False, True),  # across the rounding boundary, 0.003 %
        (0.0, -0.0, True, True),
        (0.0, 1e-30, False, False),
        (-1.0, 1.0, False, False),
        (1000.0, 1000.9, True, True),
    ],
)
def test_unchanged_by_bits_and_by_the_relative_rule(measured, old, new, bitwise, relative):
    counts = measured(torch.tensor([old]), torch.tensor([new])).counts
    assert (counts.bf16_unchanged, counts.relative_unchanged) == (int(bitwise), int(relative))


def test_stored_in_bf16_both_rules_agree(measured):
    """Neighbours in bf16 are at least 0.39 % apart."""
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(64, 32, generator=generator).bfloat16()
    new = (old.float() * (1 + 3e-3 * torch.randn(64, 32, generator=generator))).bfloat16()
    counts = measured(old, new).counts
    assert 0 < counts.bf16_unchanged < counts.entries
    assert counts.bf16_unchanged == counts.relative_unchanged == int((old == new).sum())


def test_an_update_anywhere_meets_the_masks_as_chance_does(measured):
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(256, 128, generator=generator)
    new = torch.where(torch.rand(256, 128, generator=generator) < 0.2, old * 1.5, old)
    figures = measured(old, new).ratios()
    for name in ("update_in_principal_share", "update_in_low_share"):
        assert figures[name] == pytest.approx(0.3, abs=0.02)
    for name in ("principal_update_share", "low_update_share"):
        assert figures[name] == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("rank", [1, 2, 500, 2999, 3000])
@pytest.mark.parametrize("ties", [False, True])
def test_streamed_selection_is_exact(rank, ties):
    """Over magnitudes from 1e-30 to 1e30, or a few values that tie, and zeros."""
    generator = torch.Generator().manual_seed(2)
    entries = torch.randn(3000, generator=generator).abs() * 10 ** torch.linspace(-30, 30, 3000)
    if ties:
        entries = (entries.log10() / 20).round().exp()
    entries[::97] = 0.0
    expected = float(np.sort(entries.numpy())[-rank])
    blocks = entries.split(700)
    assert largest(lambda: iter(blocks), rank, len(blocks)) == expected
    assert largest(lambda: iter([entries]), rank, 1) == expected


def test_masks_by_definition(measured):
    """All six counts against a dense computation with a full SVD."""
    generator = torch.Generator().manual_seed(3)
    old, _, _ = planted(48, 20, torch.linspace(4.0, 0.5, 20, dtype=torch.float64))
    old = old.float()
    new = old + 2e-3 * torch.randn(48, 20, generator=generator)
    row = measured(old, new, k=5, alpha=0.25)

    def principal(matrix):
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        magnitudes = (left[:, :5] * values[:5] @ right[:5]).abs()
        return magnitudes >= magnitudes.flatten().sort().values[-240]

    low = old.abs() <= old.abs().flatten().sort().values[239]
    changed = old.bfloat16() != new.bfloat16()
    masks = (principal(old), principal(new), principal(old) & principal(new), low, principal(old) & changed, low & changed)
    assert [getattr(row.masks, name) for name in row.masks.__dataclass_fields__] == [int(mask.sum()) for mask in masks]
