"""Drift of a job's report as rows of tables, for the MLflow pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def report_tables(report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Rows by the table's name; a table without rows is left out.

    ``drift_parameters``: one row a measurement, figures over all matrices (those of single kinds are metrics of the stage).
    ``responses``: one row a measurement and domain, numbers alone.
    """
    drift = report.get("drift") or {}
    tables = {
        "drift_parameters": [_flat(item, kinds=False) for item in drift.get("parameters", [])],
        "responses": [_flat(item) for item in drift.get("responses", [])],
    }
    return {name: rows for name, rows in tables.items() if rows}


def _flat(item: Mapping[str, Any], *, kinds: bool = True) -> dict[str, Any]:
    """Nested figures as ``base/relative_l2``; lists are left out."""
    return {name: value for name, value in _leaves(item, "") if kinds or name.count("/") < 2}


def _leaves(item: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in item.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value
