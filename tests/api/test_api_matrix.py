"""The score matrix of a job from the store's rows: which rows and cells it has, and what JSON cannot hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from api.evaluation_matrix import evaluations_view, plain
from cluster.spec.job import JobSpec


def _row(row: int, domain: str, scores: list[float], at: str = "boundary", step: int = 20, digest: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        problems_digest=digest,
        id=f"ev_{row}_{domain}_{at}_{step}", row=row, at=at, stage_index=row - 1 if row else None, step=step, domain=domain, num_problems=len(scores),
        mean=float(np.mean(scores)), scores=scores, truncation_rate=0.0, mean_tokens=4.0, created_at=None,
    )


@pytest.fixture
def record(spec):
    job = JobSpec.model_validate(spec)
    stages = [SimpleNamespace(index=index, name=stage.name) for index, stage in enumerate(job.stages)]
    return SimpleNamespace(id="job_1", spec=job.model_dump(mode="json"), stages=stages)


def test_before_anything_was_measured(record):
    view = evaluations_view(record, [])
    assert (view.domains, view.rows, view.score_matrix, view.retention) == (["arithmetic", "strings"], [], [], None)


def test_an_incomplete_row_has_holes_and_no_retention(record):
    view = evaluations_view(record, [_row(0, "arithmetic", [0.0, 1.0])])
    assert (view.rows, view.score_matrix, view.retention) == (["base"], [[0.5, None]], None)


def test_measurements_during_a_stage_are_listed_and_not_in_the_matrix(record):
    rows = [_row(0, "arithmetic", [0.0, 1.0]), _row(0, "strings", [1.0, 1.0]), _row(1, "arithmetic", [0.0, 0.0], at="during", step=10)]
    view = evaluations_view(record, rows)
    assert view.score_matrix == [[0.5, 1.0]]
    assert [item.at for item in view.data] == ["boundary", "boundary", "during"]
    assert view.data[2].stage == "arithmetic"


def test_retention_says_what_was_lost(record):
    half, full, none = [0.0, 1.0] * 32, [1.0] * 64, [0.0] * 64
    rows = [
        _row(0, "arithmetic", half), _row(0, "strings", half),
        _row(1, "arithmetic", full), _row(1, "strings", half),
        _row(2, "arithmetic", none), _row(2, "strings", full),
    ]
    view = evaluations_view(record, rows)
    assert view.rows == ["base", "arithmetic", "strings"]
    assert view.score_matrix == [[0.5, 0.5], [1.0, 0.5], [0.0, 1.0]]
    assert view.retention is not None
    text = str(view.retention)
    assert "forgetting" in text and "backward_transfer" in text


@dataclass
class _Figures:
    matrix: np.ndarray = field(default_factory=lambda: np.array([[1.0, np.nan]]))
    pair: tuple = (1, np.float64(2.5), float("inf"))
    nothing: None = None


def test_rows_of_other_problems_are_not_mixed_into_retention(record):
    half = [0.0, 1.0] * 32
    rows = [_row(row, name, half, digest="new" if row == 1 else "old") for row in (0, 1) for name in ("arithmetic", "strings")]
    view = evaluations_view(record, rows)
    assert view.retention is None and "row 1 was measured on other problems" in view.retention_note
    assert len(view.score_matrix) == 2


def test_arrays_become_lists_and_what_is_not_finite_becomes_null():
    assert plain(_Figures()) == {"matrix": [[1.0, None]], "pair": [1, 2.5, None], "nothing": None}
