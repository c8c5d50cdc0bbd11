"""One job's report as files to keep or to hand on: report.json, a PNG for each figure, and one page that needs nothing else.

Invariant: the page has no script and no address outside itself; what a job file named is escaped. Figures are those of
``services/evaluation/plots``, and the score matrix as MLflow shows it.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.evaluation.text_tables import retention_lines, share

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .8rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}td small{color:#777}img{max-width:100%}figure{margin:1.5rem 0}
figcaption{color:#555}pre{overflow-x:auto;background:#f6f6f6;padding:1rem;font-size:12px}"""
CAPTIONS = {
    "score_matrix": "Scores of every domain before the first stage and after each.",
    "score_by_stage": "The same with intervals, along the stages.",
    "drift_by_step": "Drift of the weights, against the base model and against where each stage began.",
    "similarity_by_stage": "How alike the answers to fixed prompts are to the base model's.",
    "forgetting_by_distance": "Change of a domain's score against the distance of its prompts from the stage's own.",
}


def write_job_files(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """report.json, PNGs and report.html into ``folder``, which is made where it is not there; what was written."""
    from services.evaluation.plots import figure_png, figure_svg

    folder.mkdir(parents=True, exist_ok=True)
    figures = all_figures(report)
    written = [folder / "report.json"]
    written[0].write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, figure in figures.items():
        written.append(folder / f"{name}.png")
        written[-1].write_bytes(figure_png(figure))
    written.append(folder / "report.html")
    written[-1].write_text(job_page(report, {name: figure_svg(figure) for name, figure in figures.items()}), encoding="utf-8")
    return written


def all_figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """matplotlib figures by name; none of what was not measured."""
    from services.evaluation.plots import job_figures
    from services.tracking.figures import score_matrix_figure

    matrix = report["score_matrix"]
    return ({"score_matrix": score_matrix_figure(matrix)} if matrix["rows"] else {}) | job_figures(report)


def job_page(report: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """The page; ``figures`` are SVG documents by name."""
    from services.evaluation.report import render_text

    name = html.escape(f"{report['job']['name']} ({report['job']['id']})")
    parts = [f"<h1>{name}</h1>", _matrix(report["score_matrix"]), _retention(report["retention"])]
    parts += [_figure(key, svg) for key, svg in figures.items()]
    parts += ["<h2>Everything, as text</h2>", f"<pre>{html.escape(render_text(report))}</pre>"]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title><style>{STYLE}</style>'
    return "\n".join(['<!doctype html><html lang="en"><head>', head, "</head><body>", *parts, "</body></html>", ""])


def _matrix(matrix: Mapping[str, Any]) -> str:
    if not matrix["rows"]:
        return "<p>No evaluation is complete yet.</p>"
    lines = [["after", *(f"{html.escape(name)} (n={matrix['num_problems'][name]})" for name in matrix["domains"])]]
    for row, name in enumerate(matrix["rows"]):
        cells = zip(*(matrix[key][row] for key in ("means", "low", "high", "truncation_rate")), strict=True)
        lines.append([html.escape(name), *(f"{mean:.3f} <small>[{low:.3f}, {high:.3f}] cut {share(cut)}</small>" for mean, low, high, cut in cells)])
    return f"<h2>Scores</h2><p>Mean [{matrix['confidence']:.0%} interval], share of completions cut at the limit.</p>" + _table(lines)


def _retention(figures: Mapping[str, Any] | None) -> str:
    if figures is None:
        return ""
    lines = [[html.escape(name), value] for name, value in retention_lines(figures)]
    return "<h2>Gained and lost</h2>" + _table([["figure", "value"], *lines])


def _table(lines: list[list[str]]) -> str:
    head, *rows = [f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in line)}</tr>" for tag, line in zip(["th"] + ["td"] * len(lines), lines, strict=False)]
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _figure(name: str, svg: str) -> str:
    """As a data address: ids inside one SVG do not meet those of another."""
    caption = html.escape(CAPTIONS.get(name, name.replace("_", " ")))
    source = base64.b64encode(svg.encode()).decode()
    return f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{source}"><figcaption>{caption}</figcaption></figure>'
