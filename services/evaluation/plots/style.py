"""How plots look: one colour, line and marker per arm over all figures, quiet axes, one legend.

Colours are Okabe and Ito's (told apart with every common kind of colour blindness), their yellow, which is lost on white, for a
dark wine; arms beyond the eighth take them again with a dashed line and another marker. Invariant: no state of matplotlib's is
touched (no pyplot, no rc parameters); matplotlib is imported inside functions. Titles of arms are people's words: they are drawn
as they stand, never parsed as formulas.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#882255")
LINES = ("-", (0, (4, 1.6)), (0, (1.2, 1.2)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
INK, FAINT, SHADE = "#222222", "#8A8A8A", "#EFEFEF"
SMALL, TEXT, TITLE = 8.0, 9.0, 10.5
"""Points."""
SUBTITLE_INCHES = 0.31
"""From the upper edge."""
MOST_BANDS = 8
"""Arms: with more of them intervals are left to the tables, for their bands would hide the lines."""
DPI = 130


@dataclass(frozen=True, slots=True)
class ArmStyle:
    """One arm's, the same in every figure."""

    title: str
    colour: str
    line: Any
    marker: str


Styles = Mapping[str, ArmStyle]


def arm_styles(titles: Mapping[str, str]) -> dict[str, ArmStyle]:
    """By the order of the arms in the study; ``titles`` by name."""
    count = len(COLOURS)
    return {
        name: ArmStyle(shortened(title, 40), COLOURS[i % count], LINES[i // count % len(LINES)], MARKERS[(i + i // count) % len(MARKERS)])
        for i, (name, title) in enumerate(titles.items())
    }


def columns_for(count: int, most: int) -> int:
    """So that the last row has as few empty places as can be."""
    return math.ceil(count / math.ceil(count / most))


def panels(count: int, *, width: float, height: float, columns: int, title: str, subtitle: str = "", share_y: bool = False):
    """A figure of ``count`` panels of a size in inches, (figure, axes in reading order)."""
    from matplotlib.figure import Figure

    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(6.0, columns * width), rows * height + 1.0), layout="constrained", facecolor="white", dpi=DPI)
    grid = figure.subplots(rows, columns, sharey=share_y, squeeze=False)
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.remove()
    headline(figure, title, subtitle)
    for one in axes[:count]:
        tidy(one)
    return figure, axes[:count]


def headline(figure, title: str, subtitle: str = "") -> None:
    """The title, and below it in grey what is shown. Empty lines of the title keep the room, for the layout knows no subtitle."""
    lines = _wrapped(subtitle, int(figure.get_figwidth() * 15))
    figure.suptitle(title + "\n" * (1 + lines.count("\n") if lines else 0), x=0.01, ha="left", fontsize=TITLE, fontweight="bold", color=INK)
    figure.text(0.01, 1.0 - SUBTITLE_INCHES / figure.get_figheight(), lines, ha="left", va="top", fontsize=SMALL, color="#555555", linespacing=1.3)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.07, hspace=0.03, wspace=0.03)


def _wrapped(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def tidy(axes) -> None:
    """Two spines, small grey ticks, a faint grid across."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(labelsize=SMALL, colors=INK, color=FAINT, length=3)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def panel_title(axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=TEXT, fontweight="bold", color=INK, parse_math=False)


def labels(axes, x: str | None = None, y: str | None = None) -> None:
    if x is not None:
        axes.set_xlabel(x, fontsize=SMALL, color=INK)
    if y is not None:
        axes.set_ylabel(y, fontsize=SMALL, color=INK)


def legend(figure, styles: Styles, names: Iterable[str], *, marks: bool = False) -> None:
    """One for the whole figure, below it; none for a single arm."""
    from matplotlib.lines import Line2D

    shown = [name for name in styles if name in set(names)]
    if len(shown) < 2:
        return
    handles = [
        Line2D([], [], color=style.colour, linestyle="none" if marks else style.line, marker=style.marker, markersize=5, linewidth=2, label=style.title)
        for style in (styles[name] for name in shown)
    ]
    longest = max(len(styles[name].title) for name in shown)
    fitting = max(1, min(len(shown), int(figure.get_figwidth() * 72 / (longest * 4.9 + 46))))
    columns = math.ceil(len(shown) / math.ceil(len(shown) / fitting))
    drawn = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=TEXT, handlelength=2.6)
    for text in drawn.get_texts():
        text.set_parse_math(False)


def counted(series: Sequence[Mapping[str, Any]]) -> str:
    """``n = 3`` or ``n = 1 to 3`` over all points of some lines."""
    counts = [point["n"] for line in series for point in line["points"]]
    if not counts:
        return "n = 0"
    return f"n = {max(counts)}" if min(counts) == max(counts) else f"n = {min(counts)} to {max(counts)}"


def shortened(text: str, most: int) -> str:
    """Cut in the middle, so that what names differ by stays."""
    if len(text) <= most:
        return text
    head = (most - 2) // 2
    return text[:head] + ".." + text[len(text) - (most - 2 - head) :]


def above_hole(axes, place: int, count: int, columns: int) -> None:
    """Of a panel with nothing below it in a figure whose last row is not full: its labels reach into the hole, so that the rows
    need not move apart for them."""
    if place + columns >= count and place // columns < (count - 1) // columns:
        axes.xaxis.set_in_layout(False)


def stage_steps(stages: Sequence[Mapping[str, Any]]) -> str:
    """``stages of 60 steps``; of each where they differ; a stage whose weights were given has none."""
    steps = [stage["steps"] or "given" for stage in stages]
    if set(steps) == {"given"}:
        return "stages (given)"
    return "stages of " + (str(steps[0]) if len(set(steps)) == 1 else ", ".join(map(str, steps))) + " steps"


def stage_ticks(axes, names: Sequence[str], *, every_label: bool = True) -> None:
    """x counts stages: 0 is the base, j the end of stage j; names lean where they are many or long."""
    axes.set_xlim(-0.08, len(names) + 0.12)
    shown = ["base", *(shortened(name, 16) for name in names)]
    lean = sum(map(len, shown)) > 26 or max(map(len, shown)) > 8
    axes.set_xticks(range(len(shown)), shown if every_label else [""] * len(shown), rotation=38 if lean else 0, ha="right" if lean else "center", rotation_mode="anchor" if lean else None)
    for edge in range(1, len(names)):
        axes.axvline(edge, color="#D0D0D0", linewidth=0.7, zorder=0)


def figure_png(figure) -> bytes:
    """As a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    return _saved(figure, FigureCanvasAgg(figure), "png")


def figure_svg(figure) -> str:
    """As an SVG document; letters are outlines, so that it looks the same everywhere."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    return _saved(figure, FigureCanvasSVG(figure), "svg", metadata={"Date": None}).decode()


def _saved(figure, canvas, kind: str, **options: Any) -> bytes:
    held = io.BytesIO()
    canvas.print_figure(held, format=kind, facecolor="white", dpi=DPI, **options)
    return held.getvalue()
