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
    assert next(row for row in rows if row[1] == "`wrong-way`")[head.index("verdict")] == "**contradicted**"
    by_order = report["hypotheses"][0]["by_order"]
    assert rows[0][head.index("by order")] == f"order-0 {by_order['order-0']:+.4g}, order-1 {by_order['order-1']:+.4g}"


def test_what_was_thought_of_later_stands_apart(report):
    text = render_markdown(report)
    section = next(part for part in text.split("\n## ") if part.startswith("Compared after the runs, not judged"))
    ((head, _, row),) = tables(section)
    (item,) = report["comparisons"]
    assert "verdict" not in head and row[1] == "`thought-of-later`" and row[0] == "It also &lt;gains> more."
    assert row[head.index("difference [95 %]")] == f"{item['difference']['mean']:+.4g} [{item['difference']['low']:+.4g}, {item['difference']['high']:+.4g}]"


def test_average_scores_stand_beside_backward_transfer(small_study, small_records):
    claim = {"name": "keeps", "claim": "It keeps less.", "figure": "backward_transfer", "arm": "arm-1", "against": "arm-0"}
    study = small_study.model_copy(update={"comparisons": (small_study.comparisons[0].model_validate(claim),)})
    report = build_study_report(study, small_records)
    scores = [sum(item["figures"]["average_score"] for item in report["members"] if item["arm"] == arm) / 6 for arm in ("arm-1", "arm-0")]
    assert f"average score: arm-1 {scores[0]:.3f}, arm-0 {scores[1]:.3f}" in render_markdown(report)


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
