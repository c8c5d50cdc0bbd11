"""The report of a study as one HTML file: no script, no request, readable in light and dark and on a narrow screen.

Invariant: every text that comes from a study or a record is escaped; figures are images inside the file, with words for who
cannot see them, and every figure that is drawn is in a table too.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from services.evaluation.plots.style import figure_svg
from services.evaluation.studies.figures import caption, study_figures
from services.evaluation.studies.page_style import STYLE
from services.evaluation.studies.text import (
    COMPARED,
    MATCHED_HEADS,
    WORDS,
    by_order_text,
    counts_text,
    estimate_text,
    expected_text,
    figure_text,
    left_out_text,
    machine_text,
    pairs_text,
    scores_text,
    seconds_text,
    stages_text,
    warnings_text,
)

VERDICT_ORDER = ("seen", "contradicted", "not_seen", "no_data")
PLACES = (
    ("What learns, and what keeps", ("gain_and_retention", "score_by_stage", "retention")),
    ("Drift", ("drift_by_stage", "similarity_by_stage")),
    ("Distance of domains", ("forgetting_by_distance",)),
)
"""Headings and the figures below them."""


def write_html(report: Mapping[str, Any], path: Path | str, *, date: str | None = None, commands: Sequence[str] = ()) -> None:
    """Write the page. ``date`` is when the study was run (the last member's end where None), ``commands`` how."""
    Path(path).write_text(page(report, date=date, commands=commands), encoding="utf-8")


def page(report: Mapping[str, Any], *, date: str | None = None, commands: Sequence[str] = ()) -> str:
    """The document."""
    figures = {key: _image(key, figure) for key, figure in study_figures(report).items()}
    study = report["study"]
    body = [
        f"<h1>{escape(study['name'])}</h1>",
        f"<p>{escape(study['description'])}</p>" if study["description"] else "",
        f'<p class="lead">{escape(counts_text(report["progress"]))}.</p>',
        _summary(report["hypotheses"]),
        figures.get("hypotheses", ""),
        _comparisons(report["comparisons"]),
        _notes(report["notes"]),
        "<h2>Progress</h2>",
        _progress(report["progress"]),
        _failed(report["failed"]),
    ]
    for heading, keys in PLACES:
        found = [image for key, image in figures.items() if key.startswith(keys)]
        body += [f"<h2>{heading}</h2>", *found] if found else []
        body += [_matched(report["matched"])] if heading == "Drift" else []
    body += ["<h2>All figures</h2>", _figure_tables(report), "<h2>How it was measured</h2>", _measured(report, date, commands)]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(study["name"])}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>\n' + "\n".join(part for part in body if part) + "\n</main></body></html>\n"


def _image(key: str, figure: Any) -> str:
    """As an image of its own: ids inside one SVG do not meet those of another."""
    words = escape(caption(key))
    width = int(figure.get_figwidth() * 96)
    source = base64.b64encode(figure_svg(figure).encode()).decode()
    return f'<figure class="scrolls"><img width="{width}" alt="{words}" src="data:image/svg+xml;base64,{source}"><figcaption>{words}</figcaption></figure>'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: str) -> str:
    """Cells are HTML already; the first of a row is its header."""
    lines = ["".join(f'<th scope="row">{cell}</th>' if place == 0 else f"<td>{cell}</td>" for place, cell in enumerate(row)) for row in rows]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scrolls" tabindex="0" role="region" aria-label="{escape(words)}"><table><caption>{escape(words)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _number(text: str) -> str:
    return f'<span class="number">{text}</span>'


def _badge(verdict: str) -> str:
    return f'<span class="verdict {verdict}">{WORDS[verdict]}</span>'


def _summary(hypotheses: Sequence[Mapping[str, Any]]) -> str:
    """What was seen, contradicted, not seen, and what has no data yet."""
    if not hypotheses:
        return "<h2>Summary</h2><p>The study file has no hypotheses.</p>"
    counts = [f"{sum(item['verdict'] == verdict for item in hypotheses)} {WORDS[verdict]}" for verdict in VERDICT_ORDER]
    rows = []
    for item in sorted(hypotheses, key=lambda item: VERDICT_ORDER.index(item["verdict"])):
        name, figure, difference, pairs = _contrast(item)
        rows.append([name, _badge(item["verdict"]), figure, escape(expected_text(item)), difference, f"{figure_text(item['p_value'])}<br><small class=\"number\">Holm {figure_text(item['p_value_holm'])}</small>", pairs])
    words = "Hypotheses: mean paired difference with 95 % t interval; p by exact sign flips, below it adjusted by Holm over all hypotheses"
    table = _table(["hypothesis", "verdict", "figure", "expected", "difference", "p", "n"], rows, words)
    return f'<h2>Summary</h2><p class="lead">Of {len(hypotheses)} hypotheses: {", ".join(counts)}.</p>' + table


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> str:
    words = "Mean paired difference with 95 % t interval. These were thought of when the runs were known: they describe, and test nothing"
    table = _table(["about", "figure", "difference", "n"], [_contrast(item) for item in comparisons], words) if comparisons else ""
    return f"<h2>{COMPARED}</h2>{table}" if table else ""


def _contrast(item: Mapping[str, Any]) -> list[str]:
    """Cells of a hypothesis or comparison: what it is about, its figure and arms, its difference, its pairs."""
    compared = escape(item["arm"]) + (f" &minus; {escape(item['against'])}" if item["against"] else "")
    beside = f"<br>average scores: {escape(scores_text(item))}" if item["average_scores"] else ""
    left_out, by_order = left_out_text(item), by_order_text(item)
    return [
        f"{escape(item['name'])}<br><small>{escape(item['claim'])}</small>",
        f"{escape(item['figure'])}<br><small>{compared}{beside}</small>",
        _number(estimate_text(item["difference"], "+")) + (f'<br><small class="number">{escape(by_order)}</small>' if by_order else ""),
        escape(pairs_text(item["n"])) + (f"<br><small>{escape(left_out)}</small>" if left_out else ""),
    ]


def _notes(notes: Sequence[str]) -> str:
    return '<h2>Notes</h2><ul class="notes">' + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>" if notes else ""


def _progress(progress: Mapping[str, Any]) -> str:
    def seeds(found: Sequence[int]) -> str:
        return escape(", ".join(map(str, found))) if found else "&ndash;"

    rows = [[escape(row["arm"]), escape(row["order"]), *(seeds(row[status]) for status in ("succeeded", "failed", "cancelled", "missing"))] for row in progress["rows"]]
    return _table(["arm", "order", "finished", "failed", "cancelled", "missing"], rows, "Seeds of every arm and order, by what became of them")


def _failed(failed: Sequence[Mapping[str, Any]]) -> str:
    rows = [[escape(f"{item['arm']}/{item['order']}-{item['seed']}"), escape(item["status"]), escape(item["reason"] or "-"), escape(stages_text(item)), escape(warnings_text(item)), escape(item["message"] or "-"), escape(item["job_id"] or "-")] for item in failed]
    words = "Members that did not succeed. A figure of a whole run leaves them out, so an arm that fails where it does badly looks better than it is"
    return _table(["member", "status", "reason", "stages done", "collapse warnings", "message", "job"], rows, words) if failed else ""


def _matched(matched: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for item in matched:
        if item["pairs"]:
            cells = [cell for of in (item["at_gain"], item["at_steps"]) for cell in (_number(estimate_text(of["arm"])), _number(estimate_text(of["against"])), _number(estimate_text(of["difference"], "+")))]
            rows.append([f"{escape(item['arm'])} &minus; {escape(item['against'])}<br><small>{escape(', '.join(item['orders']))}</small>", *cells, f"{item['at_gain']['num_stages']} ({item['at_gain']['num_left_out']})", str(item["at_gain"]["difference"]["n"])])
    heads = ["arms, orders", *MATCHED_HEADS, "stages (left out)", "n"]
    return _table(heads, rows, "Relative L2 distance from a stage's first weights, where both arms have gained the same, and at the same steps") if rows else ""


def _figure_tables(report: Mapping[str, Any]) -> str:
    """One folded table per figure that has a value; the others are named."""
    titles = {arm["name"]: arm["title"] for arm in report["study"]["arms"]}
    parts, empty = [], []
    for of in report["figures"]:
        if not any(row["n"] for row in of["rows"]):
            empty.append(of["figure"])
            continue
        rows = [[escape(titles[row["arm"]]), escape(row["order"] or "those of all arms"), figure_text(row["mean"]), figure_text(row["low"]), figure_text(row["high"]), str(row["n"]), str(row["seeds"])] for row in of["rows"]]
        table = _table(["arm", "order", "mean", "low", "high", "n", "seeds"], rows, f"{of['figure']}: {of['meaning']}")
        parts.append(f"<details><summary>{escape(of['figure'])}</summary>{table}</details>")
    parts += [f"<p>Not measured in any finished member: {escape(', '.join(empty))}.</p>"] if empty else []
    return "<p>Mean with its 95 % t interval over runs; n counts runs.</p>" + "".join(parts)


def _measured(report: Mapping[str, Any], date: str | None, commands: Sequence[str]) -> str:
    cost = report["cost"]
    facts = [
        ("date", date or report["span"]["last_finished_at"] or "-"),
        ("machine", "; ".join(machine_text(item) for item in report["machines"]) or "not recorded"),
        ("software", "; ".join(machine_text(item) for item in report["software"]) or "not recorded"),
        ("time", f"{seconds_text(cost['total_seconds'])} in all, {seconds_text(cost['mean_seconds'])} a job, {cost['num_jobs']} jobs"),
    ]
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    done = f"<h3>Commands</h3><pre>{escape(chr(10).join(commands))}</pre>" if commands else ""
    return f"<dl>{listed}</dl>{done}<h3>Study file</h3><pre>{escape(report['study']['file'])}</pre>"
