"""Hypotheses as a forest plot: difference with interval, the expected side shaded, the verdict in colour, sign and word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.evaluation.plots.style import FAINT, INK, SMALL, TEXT, headline, shortened

Verdict = Mapping[str, Any]
LOOKS = {
    "seen": ("#009E73", "o", "seen"),
    "not_seen": ("#7A7A7A", "D", "not seen"),
    "contradicted": ("#D55E00", "X", "contradicted"),
    "no_data": ("#B5B5B5", "", "no data"),
}
"""verdict: colour, marker, word"""
EDGE = 1.0


def forest_figure(hypotheses: Sequence[Verdict], titles: Mapping[str, str], *, title: str):
    """One row per hypothesis, each with its own scale (their figures have different units); None without hypotheses."""
    from matplotlib.figure import Figure

    if not hypotheses:
        return None
    figure = Figure(figsize=(11.5, 0.5 * len(hypotheses) + 1.5), layout="constrained", facecolor="white")
    headline(figure, title, "difference (arm minus other arm) with its 95 % interval; every row has its own scale; shaded: where it was expected; p: exact sign flips, before Holm's adjustment")
    left, axes, right = figure.subplots(1, 3, width_ratios=(3.6, 3.2, 4.4))
    for one in (left, axes, right):
        one.set_ylim(len(hypotheses) - 0.4, -0.6)
        one.set_yticks([])
        one.spines[:].set_visible(False)
    for one in (left, right):
        one.set_xticks([])
        one.set_xlim(0.0, 1.0)
    axes.axvline(0.0, color=FAINT, linewidth=1.0, zorder=1)
    for row, item in enumerate(hypotheses):
        _row(axes, row, item)
        _words(left, right, row, item, titles)
    axes.set_xlim(-EDGE * 1.04, EDGE * 1.04)
    axes.set_xticks([-0.6, 0.0, 0.6], ["lower", "0", "higher"], fontsize=SMALL)
    axes.tick_params(length=0, colors=INK)
    return figure


def _row(axes, row: int, item: Verdict) -> None:
    """In units of the row: its furthest end or margin lies at 0.9."""
    found, margin = item["difference"], item["margin"]
    ends = [abs(found[key]) for key in ("low", "high", "mean") if found[key] is not None]
    unit = max([*ends, margin * 1.4, 1e-12]) / 0.9
    edges = {"higher": (margin / unit, EDGE), "lower": (-EDGE, -margin / unit), "similar": (-margin / unit, margin / unit)}[item["expect"]]
    axes.fill_betweenx([row - 0.36, row + 0.36], *edges, color="#DCE9F2", linewidth=0, zorder=0)
    colour, marker, _ = LOOKS[item["verdict"]]
    if item["verdict"] == "no_data":
        axes.text(0.0, row, "no data yet", ha="center", va="center", fontsize=SMALL, color=INK, bbox={"facecolor": "white", "linewidth": 0, "pad": 2})
        return
    axes.plot([found["low"] / unit, found["high"] / unit], [row, row], color=colour, linewidth=2.4, solid_capstyle="round", zorder=2)
    axes.plot([found["mean"] / unit], [row], marker=marker, markersize=8, color=colour, markeredgecolor="white", zorder=3)


def _words(left, right, row: int, item: Verdict, titles: Mapping[str, str]) -> None:
    other = f" - {shortened(titles[item['against']], 27)}" if item["against"] else ""
    left.text(0.0, row - 0.17, shortened(item["name"], 48), va="center", fontsize=TEXT, color=INK, fontweight="bold")
    left.text(0.0, row + 0.2, shortened(f"{item['figure']}: {shortened(titles[item['arm']], 27)}{other}", 70), va="center", fontsize=7.4, color="#555555", parse_math=False)
    colour, _, word = LOOKS[item["verdict"]]
    right.text(0.0, row, word, va="center", fontsize=TEXT, color=colour if item["verdict"] != "no_data" else INK, fontweight="bold")
    found = item["difference"]
    pairs = item["n"]["pairs"]
    shown = "" if found["low"] is None else f"{found['mean']:+.3g} [{found['low']:+.3g}, {found['high']:+.3g}]   p = {item['p_value']:.2g}   "
    right.text(0.25, row, f"{shown}{pairs} pair{'' if pairs == 1 else 's'}", va="center", fontsize=SMALL, color=INK)
