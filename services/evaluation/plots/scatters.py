"""Figures of points: gain against retention, forgetting against domain distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.evaluation.plots.intervals import mean_interval
from services.evaluation.plots.style import (
    FAINT,
    INK,
    SMALL,
    Styles,
    above_hole,
    columns_for,
    labels,
    legend,
    panel_title,
    panels,
    shortened,
)

Point = Mapping[str, Any]
MOST_NAMED = 10
"""Points of a single run that are labelled one by one."""
NAMED_POINTS = (400.0, 180.0)
"""Width and height of the panel of a single run, about, in points."""
NAME_ROOM = (230.0, 11.0)
"""Of one name."""


def gain_figure(members: Sequence[Point], layout: Mapping[str, Any], styles: Styles, *, title: str):
    """Gain against backward transfer and against forgetting, of the runs of one order; a point per run, and each arm's mean with its
    interval."""
    of_order = [item for item in members if item["order"] == layout["order"]]
    sides = [
        (name, unit, [item for item in of_order if item["figures"]["gain"] is not None and item["figures"][name] is not None])
        for name, unit in (("backward_transfer", "backward transfer (score; above 0: kept or gained)"), ("forgetting", "forgetting (score; biased upward)"))
    ]
    sides = [side for side in sides if side[2]]
    if not sides:
        return None
    subtitle = f"small: one run (n = {len(sides[0][2])}); large: mean of an arm with its 95 % interval over runs"
    figure, axes = panels(len(sides), width=4.6, height=3.7, columns=len(sides), title=title, subtitle=subtitle)
    for (name, unit, found), one in zip(sides, axes, strict=True):
        one.grid(axis="both", color="#DDDDDD", linewidth=0.6)
        one.axhline(0.0, color=FAINT, linewidth=0.9)
        for arm, style in styles.items():
            pairs = [(item["figures"]["gain"], item["figures"][name]) for item in found if item["arm"] == arm]
            if pairs:
                _cloud(one, pairs, style)
        labels(one, "gain on the stages' own domains (score)", unit)
        panel_title(one, "Learned and kept" if name == "backward_transfer" else "Learned and forgotten")
        _to_means(one, [(item["figures"]["gain"], item["figures"][name]) for item in found])
    legend(figure, styles, {item["arm"] for _, _, found in sides for item in found}, marks=True)
    return figure


def _cloud(axes, pairs: Sequence[tuple[float, float]], style) -> None:
    axes.plot(*zip(*pairs, strict=True), linestyle="none", marker=style.marker, markersize=4, color=style.colour, alpha=0.45, markeredgewidth=0, zorder=2)
    x, y = (mean_interval([pair[side] for pair in pairs]) for side in (0, 1))
    spread = {
        f"{name}err": [[of["mean"] - of["low"]], [of["high"] - of["mean"]]] for name, of in (("x", x), ("y", y)) if of["low"] is not None
    }
    axes.errorbar([x["mean"]], [y["mean"]], **spread, marker=style.marker, markersize=8.5, color=style.colour, markeredgecolor="white", elinewidth=1.3, capsize=0, zorder=3)


def _to_means(axes, pairs: Sequence[tuple[float, float]]) -> None:
    """Around the runs; an interval of two runs may reach far beyond them and is cut at the frame."""
    for side, limit in ((0, axes.set_xlim), (1, axes.set_ylim)):
        values = [pair[side] for pair in pairs] + ([0.0] if side else [])
        room = 0.18 * max(max(values) - min(values), 0.05)
        limit(min(values) - room, max(values) + room)


def distance_figure(distance: Mapping[str, Sequence[Point]], layout: Mapping[str, Any], styles: Styles, *, title: str):
    """A panel per arm, of the runs of one order: change of an earlier domain's score over a later stage, against the distance of both;
    fit, rank correlation."""
    points = [point for point in distance["points"] if point["order"] == layout["order"]]
    arms = [name for name in styles if any(point["arm"] == name for point in points)]
    if not arms:
        return None
    columns = columns_for(len(arms), 4)
    subtitle = "a point is a domain learned earlier and a later stage of one run; below 0 it was forgotten; points of one run are not independent of each other"
    figure, axes = panels(len(arms), width=3.1 if len(arms) > 1 else 6.4, height=2.7 if len(arms) > 1 else 3.6, columns=columns, title=title, subtitle=subtitle, share_y=True)
    fits = {fit["arm"]: fit for fit in distance["fits"] if fit["order"] == layout["order"]}
    for place, (arm, one) in enumerate(zip(arms, axes, strict=True)):
        of_arm, fit, style = [point for point in points if point["arm"] == arm], fits[arm], styles[arm]
        one.axhline(0.0, color=FAINT, linewidth=0.9)
        one.plot([point["mmd_squared"] for point in of_arm], [point["change"] for point in of_arm], linestyle="none", marker=style.marker, markersize=4.5, color=style.colour, alpha=0.6, markeredgewidth=0)
        if fit["slope"] is not None:
            ends = (fit["low"], fit["high"])
            one.plot(ends, [fit["intercept"] + fit["slope"] * end for end in ends], color=style.colour, linewidth=1.6)
        panel_title(one, shortened(style.title, 32) if len(arms) > 1 else "")
        rank = "too few distances" if fit["spearman"] is None else f"rank corr. {fit['spearman']:+.2f}"
        one.text(0.98, 0.03, f"{rank}; n = {fit['n']}, {fit['num_pairs']} pairs", transform=one.transAxes, ha="right", va="bottom", fontsize=SMALL, color=INK, bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5})
        one.margins(x=0.08, y=0.16)
        one.locator_params(axis="x", nbins=5)  # more would run into each other in a narrow panel
        if len(arms) == 1 and len(of_arm) <= MOST_NAMED:
            _name_points(one, of_arm)
        labels(one, "MMD$^2$ of the prompts" if place >= len(arms) - columns else None, "change of the score" if place % columns == 0 else None)
        above_hole(one, place, len(arms), columns)
    return figure


def _name_points(axes, points: Sequence[Point]) -> None:
    """Beside each point, towards the middle; a name that would lie on another one is moved up until it does not."""
    left, right = axes.get_xlim()
    low, high = axes.get_ylim()
    placed: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda item: (item["change"], item["mmd_squared"])):
        over = (point["mmd_squared"] - left) / (right - left)
        x, y = over * NAMED_POINTS[0], (point["change"] - low) / (high - low) * NAMED_POINTS[1]
        up = 4.0
        while any(abs(x - other_x) < NAME_ROOM[0] and abs(y + up - other_y) < NAME_ROOM[1] for other_x, other_y in placed):
            up += NAME_ROOM[1]
        placed.append((x, y + up))
        aside = {"xytext": (-6 if over > 0.5 else 6, up), "ha": "right" if over > 0.5 else "left"}
        axes.annotate(shortened(f"{point['domain']} during {point['stage']}", 32), (point["mmd_squared"], point["change"]), textcoords="offset points", fontsize=7.4, color=INK, **aside)
