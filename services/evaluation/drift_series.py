"""Parameter drift along a series of checkpoints: the same four figures from the first of all and from the one before.

Invariant: what is drawn is what ``drift.json`` holds; a figure that nothing defines (no update fell anywhere) is a gap.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIGURES = {
    "relative_l2": ("relative_l2", "pooled", "relative L2", "norm of the change / norm of the weights"),
    "nss": ("nss", "median", "normalised spectral shift", "median over matrices"),
    "max_angle_deg": ("max_angle_deg", "median", "largest principal angle, degrees", "median over matrices"),
    "bf16_unchanged_share": ("bf16_unchanged_share", "pooled", "share of entries unchanged in bfloat16", "over all entries"),
}
"""file name: (figure, statistic of the aggregates over all tensors, axis, what of it)."""
PNG_DPI = 144
LINES = {"from_first": ("against the first", "o-"), "from_previous": ("against the one before", "s--")}


def drift_series(first: Path, from_first: Sequence[Any], from_previous: Sequence[Any]) -> dict[str, Any]:
    """The content of drift.json: figures per checkpoint, and every comparison (``ParameterDrift``) whole."""
    return {
        "object": "parameter_drift_series",
        "format": 1,
        "before": str(first),
        "checkpoints": [str(each.after) for each in from_first],
        "from_first": [figures_of(each) for each in from_first],
        "from_previous": [figures_of(each) for each in from_previous],
        "comparisons": [each.to_dict() for each in from_first],
        "previous_comparisons": [each.to_dict() for each in from_previous],
    }


def write_series(first: Path, from_first: Sequence[Any], from_previous: Sequence[Any], folder: Path) -> list[Path]:
    """drift.json and a PNG for each figure into ``folder``; what was written."""
    series = drift_series(first, from_first, from_previous)
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "drift.json"]
    written[0].write_text(json.dumps(series, indent=1) + "\n", encoding="utf-8")
    for name, figure in drift_figures(series).items():
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=PNG_DPI)
    return written


def figures_of(drift: Any) -> dict[str, float | None]:
    """The four figures of one comparison."""
    everything = drift.aggregates.get("all", {})
    return {name: getattr(everything[figure], statistic) if figure in everything else None for name, (figure, statistic, _, _) in FIGURES.items()}


def drift_figures(series: Mapping[str, Any]) -> dict[str, Any]:
    """matplotlib figures by file name, each with a line against the first checkpoint and one against the one before."""
    from matplotlib.figure import Figure

    places, labels = range(1, len(series["checkpoints"]) + 1), short_names(series["checkpoints"])
    found = {}
    for name, (_, _, axis, what) in FIGURES.items():
        figure = Figure(figsize=(max(4.5, 1.6 + 0.9 * len(labels)), 3.6), layout="constrained")
        axes = figure.add_subplot()
        for key, (words, style) in LINES.items():
            values = [float("nan") if item[name] is None else item[name] for item in series[key]]
            axes.plot(places, values, style, label=words)
        axes.set_xticks(places, labels, rotation=30 if max(map(len, labels)) > 8 else 0, ha="right" if max(map(len, labels)) > 8 else "center")
        axes.set_ylabel(axis)
        axes.set_title(f"{what}; the first is {Path(series['before']).name}", fontsize=8)
        axes.set_ylim(bottom=0.0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        found[name] = figure
    return found


def short_names(paths: Sequence[str]) -> list[str]:
    """As much of the end of each path as tells it from the others."""
    parts = [Path(path).parts or (path,) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{one[-1]} ({number})" for number, one in enumerate(parts, 1)]
