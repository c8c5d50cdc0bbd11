"""``holdfast drift``: how far the weights of one checkpoint lie from another's, trained here or elsewhere. Needs no service."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from api.commands.console import Format, Output, Refused, emit, guard

Weights = "a Hugging Face folder (safetensors, sharded or not), a job's checkpoint folder (its policy) or one .safetensors file"

COLUMNS = {
    "rel. L2": ("relative_l2", "pooled", "{:.3e}"),
    "NSS": ("nss", "median", "{:.3e}"),
    "angle, deg": ("max_angle_deg", "median", "{:.3g}"),
    "subspace sim.": ("subspace_similarity", "median", "{:.6f}"),
    "stable rank": ("stable_rank", "median", "{:.4g}"),
    "bf16 same": ("bf16_unchanged_share", "pooled", "{:.2%}"),
    "PM overlap": ("principal_overlap", "pooled", "{:.2%}"),
    "PM updated": ("principal_update_share", "pooled", "{:.2%}"),
    "low updated": ("low_update_share", "pooled", "{:.2%}"),
}
"""column: (figure, statistic of a group, format)"""

LEGEND = """angle: the largest principal angle between the leading k directions of both. rel. L2, bf16 same, PM and low columns are pooled over entries, the others medians over matrices. PM: principal mask; PM
overlap is the agreement of the masks of both, PM updated and low updated the share of a mask's entries that changed in bf16."""


def drift(
    before: Annotated[Path, typer.Argument(help=f"measured from here: {Weights}")],
    after: Annotated[Path, typer.Argument(help="measured to here: the same")],
    series: Annotated[
        list[Path] | None, typer.Option(help="more checkpoints, in order, each measured from BEFORE; may be repeated")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="also measure each from the one before it, and write drift.json and figures (PNG) into this folder")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="how many of the tensors that moved most to print")] = 10,
    k: Annotated[int | None, typer.Option("--k", min=1, help="a fixed number of directions; otherwise by --energy")] = None,
    energy: Annotated[float, typer.Option(help="share of the squared spectrum that k directions hold (at most 128)")] = 0.9,
    alpha: Annotated[float, typer.Option(help="share of entries in the principal and in the low mask")] = 0.3,
    output: Output = Format.TEXT,
) -> None:
    """Measure parameter drift: relative L2, spectral shift, principal angles, masks and bf16 changes of every matrix."""
    others, written = [after, *(series or [])], []
    with guard(output):
        if out is not None and out.exists() and not out.is_dir():
            raise Refused(f"--out {out} is a file; a folder is needed")
        found, from_previous = _measure(before, others, {"k": k, "energy": energy, "alpha": alpha}, previous=out is not None)
        if out is not None:
            written = _write(before, found, from_previous, out)
    emit(output, _as_json(found), lambda: drift_text(found, top))
    if output is Format.TEXT and written:
        print("\n".join(["", *map(str, written)]))


def _measure(before: Path, others: Sequence[Path], options: dict[str, Any], *, previous: bool) -> tuple[list[Any], list[Any]]:
    """Each from ``before``, and with ``previous`` each from the one before it. All pairs are compared by their headers first."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads: spinning threads starve each other on a shared CPU
    from trainer.diagnostics.drift import measure_drift
    from trainer.diagnostics.options import DriftOptions
    from trainer.diagnostics.pairing import paired_names
    from trainer.diagnostics.spectra_cache import SpectraCache
    from trainer.diagnostics.weight_files import DriftRefused, open_weights

    try:
        chosen, cache = DriftOptions(**options), SpectraCache()
        for other in others:
            paired_names(open_weights(before), open_weights(other))
        found = [measure_drift(before, other, options=chosen, cache=cache) for other in others]
        if not previous:
            return found, []
        pairs = itertools.pairwise(others)
        return found, [found[0], *(measure_drift(one, other, options=chosen, cache=cache) for one, other in pairs)]
    except DriftRefused as error:
        raise Refused("these cannot be measured", [{"pointer": error.field, "detail": error.detail}]) from None


def _write(before: Path, found: Sequence[Any], from_previous: Sequence[Any], folder: Path) -> list[Path]:
    """drift.json and a PNG for each figure."""
    from services.evaluation.drift_series import write_series

    return write_series(before, found, from_previous, folder)


def _as_json(found: Sequence[Any]) -> dict[str, Any]:
    """One comparison as it is; a series as a list of them."""
    if len(found) == 1:
        return found[0].to_dict()
    return {"object": "parameter_drift_series", "comparisons": [each.to_dict() for each in found]}


def drift_text(found: Sequence[Any], top: int) -> Any:
    from rich.text import Text

    parts = [f"drift from {found[0].before}"]
    if len(found) > 1:
        parts += ["", *_table("to", [(str(each.after), _group_cells(each.aggregates["all"])) for each in found])]
    for each in found:
        parts += ["", f"to {each.after}"]
        parts += _table("kind", [(kind, _group_cells(figures)) for kind, figures in each.aggregates.items()])
        if top:
            parts += ["", f"the {min(top, len(each.rows))} of {len(each.rows)} tensors that moved most"]
            parts += _table("tensor", [(row.name, _cells(row.ratios())) for row in each.most_moved(top)])
    return Text("\n".join([*parts, "", LEGEND]))


def _group_cells(figures: dict[str, Any]) -> list[str]:
    statistics = {figure: getattr(figures[figure], statistic) for figure, statistic, _ in COLUMNS.values() if figure in figures}
    return _cells(statistics)


def _cells(figures: dict[str, float | None]) -> list[str]:
    return ["-" if figures.get(figure) is None else form.format(figures[figure]) for figure, _, form in COLUMNS.values()]


def _table(first: str, rows: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Aligned lines, whole in a pipe too: names on the left, figures on the right of their columns."""
    lines = [(first, list(COLUMNS)), *rows]
    width = max(len(name) for name, _ in lines)
    widths = [max(len(cells[place]) for _, cells in lines) for place in range(len(COLUMNS))]
    return [
        "  ".join([name.ljust(width), *(cell.rjust(size) for cell, size in zip(cells, widths, strict=True))])
        for name, cells in lines
    ]
