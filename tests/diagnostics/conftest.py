"""What the tests of drift share: one matrix pair measured through files, as a user's is."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted import NAME, folder

from trainer.diagnostics.drift import measure_drift
from trainer.diagnostics.matrix_drift import MatrixDrift
from trainer.diagnostics.options import DriftOptions


@pytest.fixture
def measured(tmp_path: Path):
    """``measured(old, new, k=3)``: the only row."""
    calls = iter(range(100))

    def call(old, new, name: str = NAME, **options) -> MatrixDrift:
        place = tmp_path / str(next(calls))
        before, after = folder(place / "before", {name: old}), folder(place / "after", {name: new})
        (row,) = measure_drift(before, after, options=DriftOptions(**options)).rows
        return row

    return call
