"""Violins of response similarity, heat maps of retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.evaluation.plots.style import INK, SMALL, Styles, above_hole, columns_for, labels, panel_title, panels, shortened

Entry = Mapping[str, Any]
LEAST_RANGE = 0.1
"""Of a heat map's colours, in score: smaller changes stay pale."""


def similarity_figure(samples: Sequence[Entry], layout: Entry, styles: Styles, *, title: str):
    """One panel per arm, one violin per stage with quartiles and median; None where nothing was measured."""
    found = [item for item in samples if item["order"] == layout["order"]]
    arms = [name for name in styles if any(item["arm"] == name for item in found)]
    if not arms:
        return None
    names = [stage["name"] for stage in layout["stages"]]
    columns = columns_for(len(arms), 4)
    runs, prompts = ([item[key] for item in found] for key in ("n", "num_prompts"))
    subtitle = f"cosine of the embedded answers to the base's, at the end of each stage, over the probes of the domains that are trained on; a violin has {_span(prompts, 'answer')} of {_span(runs, 'run')}; bar: quartiles, dot: median"
    width = max(2.5, 0.42 * len(names) + 0.6)
    figure, axes = panels(len(arms), width=width, height=2.5, columns=columns, title=title, subtitle=subtitle, share_y=True)
    for place, (arm, one) in enumerate(zip(arms, axes, strict=True)):
        for item in (item for item in found if item["arm"] == arm):
            _violin(one, item, styles[arm].colour)
        shown = [shortened(name, 16) for name in names]
        lean = len(names) > 3 or max(map(len, shown)) > 8
        bottom = place >= len(arms) - columns
        one.set_xticks(range(len(names)), shown if bottom else [""] * len(names), rotation=38 if lean else 0, ha="right" if lean else "center", rotation_mode="anchor" if lean else None)
        one.set_xlim(-0.6, len(names) - 0.4)
        panel_title(one, shortened(styles[arm].title, int(10.5 * width)))
        labels(one, y="cosine similarity" if place % columns == 0 else None)
        above_hole(one, place, len(arms), columns)
    low = min(value for item in found for value in item["sample"][len(item["sample"]) // 50 :])
    axes[0].set_ylim(min(low, 0.98) - 0.02, 1.005)
    return figure


def _violin(axes, item: Entry, colour: str) -> None:
    place, sample = item["stage_index"], item["sample"]
    if sample[-1] - sample[0] > 1e-4:
        for body in axes.violinplot([sample], positions=[place], widths=0.84, showextrema=False)["bodies"]:
            body.set(facecolor=colour, alpha=0.35, edgecolor=colour, linewidth=0.8)
    axes.vlines(place, item["q25"], item["q75"], color=colour, linewidth=4.5, zorder=3)
    axes.plot([place], [item["median"]], marker="o", markersize=3.6, color="white", markeredgecolor=INK, markeredgewidth=0.7, zorder=4)


def retention_figure(matrices: Sequence[Entry], layout: Entry, styles: Styles, *, title: str):
    """One heat map of scores per arm: colour is the change from the base, framed where the stage trains on the domain."""
    found = sorted((item for item in matrices if item["order"] == layout["order"]), key=lambda item: list(styles).index(item["arm"]))
    if not found:
        return None
    changes = [value - item["means"][0][column] for item in found for row in item["means"] for column, value in enumerate(row)]
    most = max(LEAST_RANGE, *(abs(value) for value in changes))
    num_domains, num_rows = len(found[0]["domains"]), max(len(item["rows"]) for item in found)
    columns = columns_for(len(found), 4)
    size = {"width": max(2.6, 0.36 * num_domains + 0.5), "height": max(1.7, 0.22 * num_rows + 0.5)}
    subtitle = f"mean score of {_span([item['n'][-1] for item in found], 'run')}; colour: change from the base; frame: the stage of this row trained on the domain"
    figure, axes = panels(len(found), **size, columns=columns, title=title, subtitle=subtitle)
    image = None
    for place, (item, one) in enumerate(zip(found, axes, strict=True)):
        image = _heat_map(one, item, layout, most)
        panel_title(one, shortened(styles[item["arm"]].title, int(11 * size["width"])))
        if place < len(found) - columns:
            one.set_xticks(range(len(item["domains"])), [""] * len(item["domains"]))
        if place % columns:
            one.set_yticks(range(len(item["rows"])), [""] * len(item["rows"]))
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 3.0 / figure.get_figheight()), aspect=22, pad=0.015)
    bar.set_label("change of the score from the base", fontsize=SMALL, color=INK)
    bar.ax.tick_params(labelsize=SMALL, length=3)
    bar.outline.set_visible(False)
    return figure


def _heat_map(axes, item: Entry, layout: Entry, most: float):
    from matplotlib.patches import Rectangle

    change = [[value - item["means"][0][column] for column, value in enumerate(row)] for row in item["means"]]
    image = axes.imshow(change, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    shown = [shortened(name, 15) for name in item["domains"]]
    lean = len(shown) > 3 or max(map(len, shown)) > 8
    axes.set_xticks(range(len(shown)), shown, rotation=38 if lean else 0, ha="right" if lean else "center", rotation_mode="anchor" if lean else None)
    axes.set_yticks(range(len(item["rows"])), [shortened(name, 16) for name in item["rows"]])
    for row, values in enumerate(item["means"]):
        for column, value in enumerate(values):
            dark = abs(change[row][column]) > 0.62 * most
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.8 if len(shown) > 6 else 7.6, color="white" if dark else INK)
            if row and item["domains"][column] in layout["stages"][row - 1]["domains"]:
                axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor=INK, linewidth=1.1))
    return image


def _span(counts: Sequence[int], what: str) -> str:
    least, most = min(counts), max(counts)
    return f"{most if least == most else f'{least} to {most}'} {what}{'' if most == 1 else 's'}"
