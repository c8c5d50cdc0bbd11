"""Pictures for the MLflow pages."""

from __future__ import annotations

from typing import Any


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
