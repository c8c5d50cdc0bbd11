"""One job's files: the report as it is, figures, and a page that is whole in itself."""

from __future__ import annotations

import json
import re

from services.evaluation.job_page import job_page, write_job_files
from services.evaluation.report import build_report


def report() -> dict:
    """Two given stages on two domains of four problems; every cell has its own truncation rate."""
    domain = {"kind": "arithmetic"}
    stages = [
        {"name": name, "domains": [{"name": name, "domain": domain | {"digits": digits}}], "policy": {"path": name}} for digits, name in enumerate(("sums", "more"), 1)
    ]
    spec = {"name": "page", "model": {"path": "base"}, "stages": stages, "evaluation": {"problems": 4}}
    scores = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]
    rows = [
        {
            "row": row,
            "domain": name,
            "at": "boundary",
            "step": 0,
            "stage_index": row - 1 if row else None,
            "scores": [float(value) for value in of_row],
            "mean": sum(of_row) / 4,
            "num_problems": 4,
            "truncation_rate": row / 8 + (name == "more") / 1000,
            "mean_tokens": 3.0,
            "samples_per_problem": 1,
            "problems_digest": "d",
            "passed": of_row,
        }
        for row, of_row in enumerate(scores)
        for name in ("sums", "more")
    ]
    return build_report({"id": "job_1", "name": "page", "spec": spec}, rows, [])


def test_the_page_shows_scores_and_what_was_gained_and_lost():
    page = job_page(report(), {})
    assert "<td>more</td><td>0.750 " in page and "<td>base</td><td>0.250 " in page
    assert "<td>backward transfer</td><td>+0.250" in page and "change from base, sums" in page


def test_every_score_of_the_page_has_its_own_truncation_rate_beside_it():
    table = job_page(report(), {}).split("<h2>Scores</h2>")[1].split("</table>")[0]
    assert "share of completions cut at the limit" in table
    cuts = [re.findall(r"cut ([0-9.]+%)</small></td>", line) for line in table.split("<tr>")[2:]]
    assert cuts == [["0.0%", "0.1%"], ["12.5%", "12.6%"], ["25.0%", "25.1%"]]


def test_what_a_job_file_named_is_escaped_and_figures_are_inside():
    named = report() | {"job": {"id": "<script>alert(1)</script>", "name": "a&b"}}
    page = job_page(named, {"score_matrix": "<svg/>"})
    assert "<script" not in page and "a&amp;b" in page
    assert 'src="data:image/svg+xml;base64,PHN2Zy8+"' in page


def test_files_are_the_report_a_png_each_and_the_page(tmp_path):
    written = write_job_files(report(), tmp_path / "out")
    names = [path.name for path in written]
    assert names[0] == "report.json" and names[-1] == "report.html" and "score_matrix.png" in names and "score_by_stage.png" in names
    assert json.loads(written[0].read_text()) == report()
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:-1])
    assert written[-1].read_text().count("<img ") == len(written) - 2
