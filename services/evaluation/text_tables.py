"""Tables and figures with intervals as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RETENTION = (
    ("average_score", "average score", ""),
    ("backward_transfer", "backward transfer", "+"),
    ("forward_transfer", "forward transfer", "+"),
    ("forgetting", "forgetting (biased upward)", "+"),
)


def table(lines: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def signed(estimate: Mapping[str, float] | None, sign: str = "+") -> str:
    """Value and interval; ``-`` where there is none."""
    if estimate is None:
        return "-"
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def percent(estimate: Mapping[str, float | None] | None) -> str:
    """A relative change that is in percent already; ``inf`` for an unbounded end."""
    if estimate is None:
        return "-"
    low, high = (f"{bound:+.1f}" if bound is not None else "inf" for bound in (estimate["low"], estimate["high"]))
    return f"{estimate['value']:+.1f}% [{low}, {high}]"


def change(figure: Mapping[str, float] | float | None) -> str:
    """A difference with its interval, or without one where only the figure is known."""
    return f"{figure:+.3f}" if isinstance(figure, float) else signed(figure)


def short(value: float | None, factor: float = 1.0) -> str:
    """Three digits that count; ``factor`` 100 for a share in percent."""
    return "-" if value is None else f"{factor * value:.3g}"


def without_empty_columns(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Drop the columns that hold nothing below their header."""
    kept = [column for column in zip(*lines, strict=True) if any(text != "-" for text in column[1:])]
    return [list(line) for line in zip(*kept, strict=True)]


def share(value: float | None) -> str:
    """In percent, as the report's text has it."""
    return "-" if value is None else f"{100.0 * value:.1f}%"


def retention_lines(figures: Mapping[str, Any]) -> list[list[str]]:
    """Name and value of each figure, in the words of the report's text."""
    lines = [[words, signed(figures[key], sign)] for key, words, sign in RETENTION]
    return lines + [[f"change from base, {name}", signed(change)] for name, change in figures["change_from_base"].items()]
