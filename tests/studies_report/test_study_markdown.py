"""The report as Markdown: tables that parse, with the report's own figures, and nothing from a study that could break out of a cell."""

from __future__ import annotations

import re

import pytest

from cluster.spec.study import expand
from services.evaluation.studies import build_study_report, render_markdown
from tests.studies_report.made_records import made_record, made_study, simulated_records, simulated_report


@pytest.fixture(scope="module")
def report(small_study, small_records):
    return build_study_report(small_study, small_records)


def tables(text: str) -> list[list[list[str]]]:
    """Every table's rows of cells, its head first."""
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    return [[[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block] for block in blocks]


def test_every_row_has_as_many_cells_as_its_head(report):
    found = tables(render_markdown(report))
    assert len(found) > 4
    for table in found:
        assert table[1] == ["---"] * len(table[0]) and {len(row) for row in table} == {len(table[0])}


def test_the_figures_of_an_order_are_the_reports(report):
    text = render_markdown(report)
    section = next(part for part in text.split("\n## ") if part.startswith("Order order-1:"))
    head, _, *rows = tables(section)[0]
    assert head[:3] == ["arm", "n", "gain"] and len(rows) == 2
    row = next(row for of in report["figures"] if of["figure"] == "gain" for row in of["rows"] if (row["arm"], row["order"]) == ("arm-1", "order-1"))
    assert rows[1][1:3] == ["3", f"{row['mean']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"]


def test_verdicts_stand_beside_what_was_expected(report):
    head, _, *rows = tables(render_markdown(report))[0]
    assert head[0] == "claim" and [row[1] for row in rows] == [f"`{item['name']}`" for item in report["hypotheses"]]
    assert next(row for row in rows if row[1] == "`wrong-way`")[5] == "**contradicted**"


def test_a_title_and_a_message_stay_in_their_cells():
    study = made_study(arms=2, stages=2, seeds=2)
    arms = tuple(arm.model_copy(update={"title": "a | b <script>\nc"}) if arm.name == "arm-0" else arm for arm in study.arms)
    study = study.model_copy(update={"arms": arms})
    _, *others = simulated_records(study)
    member = expand(study)[0]
    failed = made_record(study, member, simulated_report(study, member, stages_done=1), status="failed", reason="non_finite_loss", message="| x |\n| y |")
    text = render_markdown(build_study_report(study, [failed, *others]))
    assert r"a \| b &lt;script> c" in text and r"\| x \| \| y \|" in text
    assert all(len(row) == len(table[0]) for table in tables(text) for row in table)


def test_nothing_finished_is_said(small_study):
    text = render_markdown(build_study_report(small_study, []))
    assert "0 of 12 members finished, 12 missing." in text and "## Order" not in text and "no data" in text
