"""Figures with lines along a run: scores, parameter drift, response drift."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.evaluation.plots.style import (
    MOST_BANDS,
    SHADE,
    ArmStyle,
    Styles,
    above_hole,
    columns_for,
    counted,
    labels,
    legend,
    panel_title,
    panels,
    shortened,
    stage_steps,
    stage_ticks,
)

Line = Mapping[str, Any]
Layout = Mapping[str, Any]
MANY_TIMES = 30.0
"""Between the lowest and the highest line's end: from there on the axis is logarithmic."""
DRIFT_PANELS = (
    ("parameter_drift", {"reference": "base", "figure": "relative_l2"}, "Weights against the base", "relative L2 distance"),
    ("parameter_drift", {"reference": "start", "figure": "relative_l2"}, "Weights against the stage's first", "relative L2 distance"),
    ("parameter_drift", {"reference": "base", "figure": "nss_median"}, "Spectra against the base", "normalised shift, median of matrices"),
    ("parameter_drift", {"reference": "base", "figure": "max_angle_deg_median"}, "Subspaces against the base", "largest angle, degrees (median)"),
    ("response_kl", {"role": "own"}, "Answers to the stage's own prompts", "KL(policy || base), nats per token"),
    ("response_kl", {"role": "earlier"}, "Answers to earlier stages' prompts", "KL(policy || base), nats per token"),
)


def score_figure(series: Sequence[Line], layout: Layout, styles: Styles, *, title: str, over: str = "seeds"):
    """One panel per domain; grey where a stage trains on it; a line per arm with its interval."""
    lines = [line for line in series if line["order"] == layout["order"]]
    names = [stage["name"] for stage in layout["stages"]]
    domains = [domain for domain in layout["domains"] if any(line["domain"] == domain for line in lines)]
    columns = columns_for(len(domains), 2 if len(domains) == 4 else 3)
    figure, axes = panels(len(domains), width=max(3.5, 0.45 * len(names)), height=2.6, columns=columns, title=title, subtitle=_say(lines, over) + "; grey: the stage trains on this domain", share_y=True)
    for place, (domain, one) in enumerate(zip(domains, axes, strict=True)):
        for index, stage in enumerate(layout["stages"]):
            if domain in stage["domains"]:
                one.axvspan(index, index + 1, color=SHADE, zorder=0, linewidth=0)
        _draw(one, [line for line in lines if line["domain"] == domain], styles)
        trained = any(domain in stage["domains"] for stage in layout["stages"])
        panel_title(one, shortened(domain, 34) + ("" if trained else " (not trained on)"))
        stage_ticks(one, names, every_label=place >= len(domains) - columns)
        labels(one, stage_steps(layout["stages"]) if place >= len(domains) - columns else None, "mean score" if place % columns == 0 else None)
        above_hole(one, place, len(domains), columns)
    _to_score_range(axes, lines)
    legend(figure, styles, {line["arm"] for line in lines})
    return figure


def drift_figure(series: Mapping[str, Sequence[Line]], layout: Layout, styles: Styles, *, title: str, over: str = "seeds"):
    """Parameter drift and response drift; None where nothing was measured."""
    found = []
    for key, wanted, name, unit in DRIFT_PANELS:
        lines = [line for line in series[key] if line["order"] == layout["order"] and all(line[field] == value for field, value in wanted.items())]
        if lines:
            found.append((lines, name, unit, wanted))
    if not found:
        return None
    names = [stage["name"] for stage in layout["stages"]]
    columns = columns_for(len(found), 2 if len(found) == 4 else 3)
    everything = [line for lines, *_ in found for line in lines]
    figure, axes = panels(len(found), width=max(3.6, 0.45 * len(names)), height=2.7, columns=columns, title=title, subtitle=_say(everything, over))
    for place, ((lines, name, unit, wanted), one) in enumerate(zip(found, axes, strict=True)):
        from_nothing = wanted.get("reference") is not None
        restarts = wanted.get("reference") == "start" or "role" in wanted
        _draw(one, lines, styles, restarts=restarts, from_nothing=from_nothing)
        panel_title(one, name)
        stage_ticks(one, names, every_label=place >= len(found) - columns)
        labels(one, stage_steps(layout["stages"]) if place >= len(found) - columns else None, unit)
        _scale(one, lines)
        above_hole(one, place, len(found), columns)
    legend(figure, styles, {line["arm"] for line in everything})
    return figure


def _say(lines: Sequence[Line], over: str) -> str:
    if not over:
        has_bars = any("bar" in point for line in lines for point in line["points"])
        return "one run" + ("; bars: 95 % interval over problems" if has_bars else "")
    bands = len({line["arm"] for line in lines}) <= MOST_BANDS
    return f"mean over {over} ({counted(lines)}){' with its 95 % interval' if bands else '; intervals are in the tables'}"


def _draw(axes, lines: Sequence[Line], styles: Styles, *, restarts: bool = False, from_nothing: bool = False) -> None:
    bands = len(lines) <= MOST_BANDS
    for line in sorted(lines, key=lambda item: list(styles).index(item["arm"])):
        for part in _parts(line["points"], restarts=restarts, from_nothing=from_nothing):
            _draw_part(axes, part, styles[line["arm"]], opacity=0.0 if not bands else 0.2 if len(lines) <= 4 else 0.12, size=1.0 if bands else 0.7)


def _draw_part(axes, points: Sequence[Mapping[str, Any]], style: ArmStyle, *, opacity: float, size: float) -> None:
    """A line, marks at stage ends, and the interval as a band; where only ends have one (a single run), as bars."""
    x = [point["x"] for point in points]
    axes.plot(x, [point["mean"] for point in points], color=style.colour, linestyle=style.line, linewidth=1.6 * size, solid_capstyle="round", zorder=3)
    ends = [point for point in points if float(point["x"]).is_integer() and point.get("n")]
    axes.plot([point["x"] for point in ends], [point["mean"] for point in ends], linestyle="none", marker=style.marker, markersize=4.2 * size, color=style.colour, markeredgecolor="white", markeredgewidth=0.5, zorder=4)
    if any("bar" in point for point in ends):
        low, high = ([abs(point["mean"] - point["bar"][side]) for point in ends] for side in (0, 1))
        axes.errorbar([point["x"] for point in ends], [point["mean"] for point in ends], [low, high], fmt="none", ecolor=style.colour, elinewidth=1.2, capsize=2.5, zorder=3)
    elif opacity:
        low, high = ([point["mean"] if point[side] is None else point[side] for point in points] for side in ("low", "high"))
        axes.fill_between(x, low, high, color=style.colour, alpha=opacity, linewidth=0, zorder=2)


def _parts(points: Sequence[Mapping[str, Any]], *, restarts: bool, from_nothing: bool) -> list[list[Mapping[str, Any]]]:
    """A line that begins anew in every stage is cut at its ends; one that is 0 by definition where it begins starts there."""
    parts: dict[int, list[Mapping[str, Any]]] = {}
    for point in points:
        stage = max(0, -int(-point["x"] // 1) - 1) if restarts else 0
        parts.setdefault(stage, []).append(point)
    if not from_nothing:
        return list(parts.values())
    return [[{"x": float(stage), "mean": 0.0, "low": 0.0, "high": 0.0, "n": 0}, *of_stage] for stage, of_stage in parts.items()]


def _to_score_range(axes: Sequence[Any], lines: Sequence[Line]) -> None:
    """Scores are shares; the axis does not leave 0 to 1 because of an interval."""
    values = [value for line in lines for point in line["points"] for value in (point["mean"], *point.get("bar", ()))]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.08 * max(high - low, 0.05) + 0.02
    for one in axes:
        one.set_ylim(max(-0.02, low - 2 * margin), min(1.02, high + 2 * margin))


def _scale(axes, lines: Sequence[Line]) -> None:
    ends = [line["points"][-1]["mean"] for line in lines]
    if min(ends) > 0.0 and max(ends) > MANY_TIMES * min(ends):
        axes.set_yscale("log")
        return
    points = [point for line in lines for point in line["points"]]
    most = max(point["mean"] for point in points)
    highest = max(point["mean"] if point["high"] is None else point["high"] for point in points)
    if min(point["mean"] for point in points) >= 0.0:
        axes.set_ylim(0.0, 1.06 * min(highest, 1.5 * most) or None)  # an interval of two seeds may be many times its mean
