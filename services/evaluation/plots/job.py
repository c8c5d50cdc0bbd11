"""The plots of a single job's report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.evaluation.plots.distributions import similarity_figure
from services.evaluation.plots.lines import drift_figure, score_figure
from services.evaluation.plots.runs import run_of_report
from services.evaluation.plots.scatters import distance_figure
from services.evaluation.plots.series import all_series
from services.evaluation.plots.style import arm_styles


def job_figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """``score_by_stage``, ``drift_by_step``, ``similarity_by_stage``, ``forgetting_by_distance`` of one report.json; those of
    which nothing was measured are left out."""
    name = report["job"]["name"]
    run = run_of_report(report, arm=name, order="as-given", seed=report["job"].get("seed") or 0)
    if run is None or not run.num_rows:
        return {}
    series, styles = all_series([run]), arm_styles({run.arm: name})
    layout = series["orders"][0]
    _add_bars(series["scores"], report["score_matrix"])
    found = {
        "score_by_stage": score_figure(series["scores"], layout, styles, title=f"Scores of {name}", over=""),
        "drift_by_step": drift_figure(series, layout, styles, title=f"Drift of {name}", over=""),
        "similarity_by_stage": similarity_figure(series["similarity"], layout, styles, title=f"How alike the answers of {name} are to the base's"),
        "forgetting_by_distance": distance_figure(series["distance"], layout, styles, title=f"Forgetting against the distance of domains: {name}"),
    }
    return {key: figure for key, figure in found.items() if figure is not None}


def _add_bars(lines: list[dict[str, Any]], matrix: Mapping[str, Any]) -> None:
    """The intervals over problems that the report has of every row."""
    if not matrix.get("low"):
        return
    for line in lines:
        column = matrix["domains"].index(line["domain"])
        for point in line["points"]:
            if float(point["x"]).is_integer() and point["x"] < len(matrix["low"]):
                point["bar"] = (matrix["low"][int(point["x"])][column], matrix["high"][int(point["x"])][column])
