"""The score matrix of a job from the store's rows: which rows and cells it has, and what JSON cannot hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from api.evaluation_matrix import evaluations_view, plain
from cluster.spec.job import JobSpec
from services.evaluation.report import build_report


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


def _measured(digests: list[tuple[str | None, str | None]]) -> list[SimpleNamespace]:
    """Rows from the base model on, (arithmetic, strings); the mean grows with the row."""
    named = zip(("arithmetic", "strings"), zip(*digests, strict=True), strict=True)
    return [_row(row, name, [float(index <= row) for index in range(4)], digest=one) for name, of_name in named for row, one in enumerate(of_name)]


def test_rows_of_other_problems_are_left_out_of_the_matrix_as_in_the_report(record):
    rows = _measured([("a", "s"), ("a", "s"), ("a", "other")])
    view = evaluations_view(record, rows)
    assert (view.rows, view.score_matrix) == (["base", "arithmetic"], [[0.25, 0.25], [0.5, 0.5]])
    assert [gain["value"] for gain in view.retention["stage_gains"]] == [0.25] and view.retention_note is None
    assert [item.row for item in view.data if not item.comparable] == [2, 2] and len(view.data) == 6

    report = build_report({"id": record.id, "name": "demo", "spec": record.spec}, [vars(item) for item in rows], [])["score_matrix"]
    assert (view.rows, view.score_matrix, view.notes) == (report["rows"], report["means"], report["notes"])
    assert "row 2 and later ones are left out" in view.notes[0] and "['strings']" in view.notes[0]


def test_a_row_that_is_not_whole_yet_is_left_out_too_where_it_does_not_compare(record):
    rows = _measured([("a", "s"), ("a", "s"), ("other", "s")])
    view = evaluations_view(record, [item for item in rows if item.row < 2 or item.domain == "arithmetic"])
    assert view.rows == ["base", "arithmetic"] and "row 2 and later ones are left out" in view.notes[0]


def test_rows_of_before_digests_are_taken_with_the_note_of_the_report(record):
    view = evaluations_view(record, _measured([(None, None), ("a", "s")]))
    assert view.rows == ["base", "arithmetic"] and view.retention is not None and all(item.comparable for item in view.data)
    assert len(view.notes) == 1 and "rows [0] have no digest" in view.notes[0]


def test_scores_inside_a_stage_say_whether_they_compare(record):
    inside = [_row(2, "strings", [1.0] * 4, at="during", step=step, digest=digest) for step, digest in ((5, "s"), (10, "other"))]
    view = evaluations_view(record, [*_measured([("a", "s"), ("a", "s")]), *inside])
    assert [item.comparable for item in view.data if item.at == "during"] == [True, False]
    assert len(view.notes) == 1 and "inside strings at steps [10]" in view.notes[0] and "evaluations_not_comparable" in view.notes[0]

    view = evaluations_view(record, [*_measured([("a", "s"), ("b", "s")]), *inside])
    assert not any(item.comparable for item in view.data if item.row > 0), "what came after a row that is left out is left out with it"
    assert len(view.notes) == 1 and "row 1 and later ones are left out" in view.notes[0]


def test_every_cell_has_its_own_truncation_rate(record):
    rows = _measured([("a", "s"), ("a", "s")])
    for item in rows:
        item.truncation_rate = item.row / 8 + (item.domain == "strings") / 4
    view = evaluations_view(record, [item for item in rows if (item.row, item.domain) != (1, "strings")])
    assert view.truncation_rate == [[0.0, 0.25], [0.125, None]]


def test_arrays_become_lists_and_what_is_not_finite_becomes_null():
    assert plain(_Figures()) == {"matrix": [[1.0, None]], "pair": [1, 2.5, None], "nothing": None}
