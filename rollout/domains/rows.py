"""Rows of a user's data set: JSONL, CSV, Parquet, or a Hugging Face id at a revision.

Invariant: nothing executes user bytes. Rows are read by the json and csv modules, by pyarrow, and by ``datasets``, which
runs no code of a data set. What cannot be read is told with file and line, several faults at once.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import SpecError
from cluster.spec.domains import DatasetDomain

Row = dict[str, Any]
MAX_FAULTS = 20


class DatasetError(SpecError):
    """A data set that cannot be used; says which file, line, column or split.

    ``details["faults"]``: dicts of ``pointer`` (into the domain's spec) and ``detail``. Reasons: ``dataset_invalid``, and
    ``dataset_unavailable`` where a Hugging Face id could not be loaded.
    """

    reason = "dataset_invalid"


def dataset_error(faults: list[dict[str, str]], *, reason: str | None = None) -> DatasetError:
    return DatasetError("; ".join(fault["detail"] for fault in faults), reason=reason, details={"faults": faults})


def fault(pointer: str, detail: str) -> dict[str, str]:
    return {"pointer": pointer, "detail": detail}


@dataclass(frozen=True, slots=True)
class Rows:
    """``columns``: all that the data set has, in its order. ``rows``: only the wanted ones are kept."""

    columns: list[str]
    rows: list[Row]


def read_rows(spec: DatasetDomain, wanted: Collection[str], base_dir: Path | None = None) -> Rows:
    """All rows, with the columns in ``wanted`` that exist. Raises ``DatasetError``."""
    if spec.id is not None:
        return _read_hub(spec, wanted)
    path = data_file(spec, base_dir)
    if not path.is_file():
        raise dataset_error([fault("/path", f"data file {spec.path!r} does not exist")])
    read = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}[path.suffix]
    return read(path, wanted)


def data_file(spec: DatasetDomain, base_dir: Path | None = None) -> Path:
    """The file; a relative path is taken from ``base_dir``, or else from the working directory."""
    return Path(base_dir or ".") / spec.path


def _read_jsonl(path: Path, wanted: Collection[str]) -> Rows:
    columns: dict[str, None] = {}
    rows: list[Row] = []
    faults: list[dict[str, str]] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                faults.append(fault("/path", f"{path.name} line {number} is not JSON: {error}"))
                row = {}
            if not isinstance(row, dict):
                faults.append(fault("/path", f"{path.name} line {number} is a {type(row).__name__}, an object is needed"))
                row = {}
            if len(faults) >= MAX_FAULTS:
                break
            columns.update(dict.fromkeys(row))
            rows.append({name: row[name] for name in wanted if name in row})
    if faults:
        raise dataset_error(faults)
    return Rows(list(columns), rows)


def _read_csv(path: Path, wanted: Collection[str]) -> Rows:
    """Every value is text: a column of zip codes must not become numbers."""
    rows: list[Row] = []
    faults: list[dict[str, str]] = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        for row in _told(reader, path, faults):
            if None in row or None in row.values():
                width = len(reader.fieldnames or [])
                given = sum(name is not None and value is not None for name, value in row.items()) + len(row.get(None) or [])
                faults.append(fault("/path", f"{path.name} line {reader.line_num} has {given} fields, the header has {width}"))
            if len(faults) >= MAX_FAULTS:
                break
            rows.append({name: row[name] for name in wanted if name in row})
        columns = list(reader.fieldnames or [])
    if faults:
        raise dataset_error(faults)
    return Rows(columns, rows)


def _told(reader: csv.DictReader, path: Path, faults: list[dict[str, str]]) -> Iterator[Row]:
    """The reader's rows, up to a line that it cannot read; that one becomes a fault."""
    try:
        yield from reader
    except (csv.Error, UnicodeDecodeError) as error:
        faults.append(fault("/path", f"{path.name} line {reader.line_num + 1} is not CSV: {error}"))


def _read_parquet(path: Path, wanted: Collection[str]) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            table = file.read(columns=[name for name in columns if name in wanted])
    except (pyarrow.ArrowException, OSError) as error:
        raise dataset_error([fault("/path", f"{path.name} is not a Parquet file that can be read: {error}")]) from error
    return Rows(columns, table.to_pylist())


def _read_hub(spec: DatasetDomain, wanted: Collection[str]) -> Rows:
    if spec.revision is None:
        raise dataset_error(
            [fault("/revision", f"data set {spec.id!r} needs a revision (a commit), so that the job means the same rows every time")]
        )
    import datasets

    try:
        loaded = datasets.load_dataset(spec.id, spec.subset, split=spec.hub_split, revision=spec.revision)
    except Exception as error:  # the hub client raises many kinds; all of them mean that there are no rows
        told = f"data set {spec.id!r} at revision {spec.revision!r} could not be loaded: {type(error).__name__}: {error}"
        raise dataset_error([fault("/id", told[:1000])], reason="dataset_unavailable") from error
    columns = list(loaded.column_names)
    return Rows(columns, list(loaded.select_columns([name for name in columns if name in wanted])))
