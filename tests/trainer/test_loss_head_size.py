"""The loss head at full size: its error in float32 beside the naive version's own, and its peak memory in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from full_size import KINDS, SUPPORTS, make_case, rows_of, run_naive, run_ours, stage_of

ERROR_RATIO = 1.5
"""Our error against float64 over the naive version's own error against float64."""
PEAK_MEGABYTES, NAIVE_MEGABYTES = 200, 2000
PAIRS = [(kind, support) for kind in KINDS for support in SUPPORTS if (kind, support) != ("jensen_shannon", "sampled")]
VOCABULARIES = [128, 8192, pytest.param(151936, marks=pytest.mark.slow)]


def _distance(got: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    """Euclidean distance over all seeds together."""
    return sum((one.double() - other).square().sum().item() for one, other in zip(got, exact, strict=True)) ** 0.5


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize(("kind", "support"), PAIRS)
def test_float32_errs_at_most_half_again_as_much_as_the_naive_version(kind, support, vocabulary):
    """Values row by row (their sum would let errors cancel by chance), and both gradients over all rows in several chunks."""
    ours, naive, exact = ([[], [], []] for _ in range(3))
    for seed in range(2):
        case = make_case(rows=48, vocabulary=vocabulary, hidden=32, seed=seed)
        loss, wide = stage_of(kind, support, case.support_ids.shape[1]), case.to(torch.float64)
        for index in range(12):
            row, wide_row = case.row(index), wide.row(index)
            ours[0].append(run_ours(row, loss, rows_of(row, support))[0])
            naive[0].append(run_naive(row, loss, support)[0])
            exact[0].append(run_naive(wide_row, loss, support)[0])
        results = run_ours(case, loss, rows_of(case, support), max_chunk_rows=20), run_naive(case, loss, support), run_naive(wide, loss, support)
        for found, result in zip((ours, naive, exact), results, strict=True):
            found[1].append(result[1])
            found[2].append(result[2])
    for name, *found in zip(("values", "hidden", "head"), ours, naive, exact, strict=True):
        own, other = _distance(found[0], found[2]), _distance(found[1], found[2])
        assert own <= ERROR_RATIO * other, f"{name}: {own:.3g} against {other:.3g}"


def _peak_megabytes(which: str, kind: str) -> float:
    """Beyond the inputs and their gradients, of one forward and backward in a process of its own."""
    program = Path(__file__).resolve().parents[1] / "benchmarks" / "loss_head.py"
    command = [sys.executable, str(program), "--memory-of", which, kind, "full", "512", "151936", "256"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    return float(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_peak_memory_stays_flat_where_the_naive_version_needs_gigabytes(kind):
    assert _peak_megabytes("ours", kind) < PEAK_MEGABYTES
    if kind == "reverse_kl":
        assert _peak_megabytes("naive", kind) > NAIVE_MEGABYTES
