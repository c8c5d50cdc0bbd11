"""Pictures for the MLflow pages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIRST_FORMAT = 2
"""Of report.json, that has what the figures show."""


def draw_job_figures(report: Mapping[str, Any], folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The figures of ``services/evaluation/plots`` as PNG files in ``folder``, and by name why one could not be drawn.

    A picture is no reason to hold back a job's records: nothing is raised.
    """
    if report.get("format", 1) < FIRST_FORMAT:
        return [], {}
    try:
        from services.evaluation.plots import figure_png, job_figures

        figures = job_figures(report)
    except Exception as error:
        return [], {"(all)": _reason(error)}
    drawn: list[Path] = []
    undrawn: dict[str, str] = {}
    for name, figure in figures.items():
        try:
            path = folder / f"{name}.png"
            path.write_bytes(figure_png(figure))
            drawn.append(path)
        except Exception as error:
            undrawn[name] = _reason(error)
    return drawn, undrawn


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def score_matrix_figure(matrix: dict[str, Any]):
    """A heat map of ``report.json``'s score matrix: rows are the base and the stages, columns the domains."""
    from matplotlib.figure import Figure

    rows, domains, means = matrix["rows"], matrix["domains"], matrix["means"]
    figure = Figure(figsize=(1.6 + 1.4 * len(domains), 1.2 + 0.6 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    known = [[float("nan") if value is None else value for value in row] for row in means]
    image = axes.imshow(known, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(domains)), domains)
    axes.set_yticks(range(len(rows)), ["base", *(f"after {name}" for name in rows[1:])])
    for i, row in enumerate(known):
        for j, value in enumerate(row):
            axes.text(j, i, "-" if value != value else f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    axes.set_title("score by stage and domain")
    figure.colorbar(image, ax=axes, label="share of problems solved")
    return figure
