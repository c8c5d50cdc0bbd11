"""The figures of a study's report; keys end in the order's name where the study has several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from services.evaluation.plots.distributions import retention_figure, similarity_figure
from services.evaluation.plots.forest import forest_figure
from services.evaluation.plots.lines import drift_figure, score_figure
from services.evaluation.plots.scatters import distance_figure, gain_figure
from services.evaluation.plots.style import arm_styles

CAPTIONS = {
    "hypotheses": "What was expected, and what the finished runs show.",
    "score_by_stage": "Mean score on every domain along the stages; inside a stage its evaluations.",
    "gain_and_retention": "What an arm learns on the stages' own domains against what it keeps of the earlier ones.",
    "drift_by_stage": "How far weights and answers have moved along the stages.",
    "similarity_by_stage": "How alike the answers are to the base model's at the end of every stage.",
    "forgetting_by_distance": "Change of an earlier domain's score over a later stage against the distance between the two domains' prompts.",
    "retention": "Scores on every domain after every stage.",
}


def study_figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """key -> matplotlib Figure, in the order of ``CAPTIONS``; those of which nothing was measured are left out."""
    titles = {arm["name"]: arm["title"] for arm in report["study"]["arms"]}
    styles, series = arm_styles(titles), report["series"]
    found = {
        "hypotheses": forest_figure(report["hypotheses"], titles, title="Hypotheses"),
        **_of_orders(report, "score_by_stage", lambda layout, name: score_figure(series["scores"], layout, styles, title="Score by stage and domain" + name)),
        **_of_orders(report, "gain_and_retention", lambda layout, name: gain_figure(report["members"], layout, styles, title="Gain and retention" + name)),
        **_of_orders(report, "drift_by_stage", lambda layout, name: drift_figure(series, layout, styles, title="Drift by stage" + name)),
        **_of_orders(report, "similarity_by_stage", lambda layout, name: similarity_figure(series["similarity"], layout, styles, title="Answers against the base's" + name)),
        **_of_orders(report, "forgetting_by_distance", lambda layout, name: distance_figure(series["distance"], layout, styles, title="Forgetting against the distance of domains" + name)),
        **_of_orders(report, "retention", lambda layout, name: retention_figure(series["matrices"], layout, styles, title="Retention" + name)),
    }
    return {key: figure for key, figure in found.items() if figure is not None}


def caption(key: str) -> str:
    """In words, for readers and for whoever cannot see the figure."""
    name = next(name for name in CAPTIONS if key == name or key.startswith(name + "-"))
    order = key.removeprefix(name).removeprefix("-")
    return CAPTIONS[name] + (f" Order: {order}." if order else "")


def _of_orders(report: Mapping[str, Any], key: str, draw: Callable[[Mapping[str, Any], str], Any]) -> dict[str, Any]:
    several = len(report["study"]["orders"]) > 1
    return {
        f"{key}-{layout['order']}" if several else key: draw(layout, f", order {layout['order']}" if several else "")
        for layout in report["series"]["orders"]
        if any(item["order"] == layout["order"] for item in report["series"]["matrices"])
    }
