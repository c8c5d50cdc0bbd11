"""A user's own data set as a domain: JSONL, Parquet, CSV, or a Hugging Face id, with a named verifier.

Nothing executes user bytes: rows are read by pyarrow or the json module, templates are plain replacement.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

from cluster.errors import SpecError
from cluster.messages import Problem, Verdict
from cluster.spec.domains import DatasetDomain
from rollout.domains.base import Split
from rollout.verifiers import VERIFIERS

PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


class DatasetError(SpecError):
    """A data set that cannot be used; says which file, line, column or split."""

    reason = "dataset_invalid"


class Dataset:
    """Rows in an order that is a function of the seed and the epoch; an index beyond the end starts the next epoch."""

    def __init__(self, spec: DatasetDomain, name: str, seed: int):
        self.name = name
        self._spec = spec
        self._seed = seed
        self._rows: dict[Split, list[dict[str, Any]]] | None = None
        self._orders: dict[tuple[Split, int], list[int]] = {}

    def size(self, split: Split) -> int | None:
        return len(self._split(split))

    def problem(self, split: Split, index: int) -> Problem:
        rows = self._split(split)
        epoch, position = divmod(index, len(rows))
        row = rows[self._order(split, epoch)[position]]
        columns = self._spec.columns
        answer = row[columns.answer]
        messages = [{"role": "user", "content": render(self._spec.template, row, columns.problem)}]
        if self._spec.system:
            messages.insert(0, {"role": "system", "content": self._spec.system})
        solution = row[columns.solution] if columns.solution else answer
        return Problem(
            problem_id=f"{self.name}/{split}/{index}",
            domain=self.name,
            messages=tuple(messages),
            solution=solution if isinstance(solution, str) else json.dumps(solution),
            answer=answer,
        )

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        verifier = self._spec.verifier
        return VERIFIERS[verifier.kind](verifier, problem.answer, completion_text)

    def __getstate__(self) -> dict[str, Any]:
        """Only what ``verify`` needs travels to a verifier process; rows stay here."""
        return {**self.__dict__, "_rows": None, "_orders": {}}

    def _split(self, split: Split) -> list[dict[str, Any]]:
        if self._rows is None:
            self._rows = split_rows(self._spec, read_rows(self._spec))
        return self._rows[split]

    def _order(self, split: Split, epoch: int) -> list[int]:
        if (split, epoch) not in self._orders:
            order = list(range(len(self._split(split))))
            random.Random(f"{self.name}/{self._seed}/{split}/{epoch}").shuffle(order)
            self._orders[(split, epoch)] = order
        return self._orders[(split, epoch)]


def render(template: str, row: dict[str, Any], problem_column: str) -> str:
    """Replace ``{problem}`` and ``{column}`` by the row's values; nothing else in the template is special."""

    def value(match: re.Match[str]) -> str:
        column = match.group(1)
        if column == "problem":
            column = problem_column
        return str(row[column]) if column in row else match.group(0)

    return PLACEHOLDER.sub(value, template)


def read_rows(spec: DatasetDomain) -> list[dict[str, Any]]:
    """All rows of the data set. Raises ``DatasetError`` naming the file and the line."""
    if spec.id is not None:
        return _read_hub(spec)
    path = Path(spec.path)
    if not path.is_file():
        raise DatasetError(f"data file {spec.path!r} does not exist")
    if path.suffix == ".jsonl":
        return _read_jsonl(path)
    import pyarrow.csv
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"data file {path.name!r} cannot be read: {error}") from error
    return table.to_pylist()


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DatasetError(f"{path.name} line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DatasetError(f"{path.name} line {number} is {type(row).__name__}, an object is needed")
            rows.append(row)
    return rows


def _read_hub(spec: DatasetDomain) -> list[dict[str, Any]]:
    import datasets

    try:
        loaded = datasets.load_dataset(spec.id, spec.subset, split=spec.hub_split, revision=spec.revision)
    except Exception as error:  # the hub client raises many kinds; all mean that there are no rows
        raise DatasetError(f"data set {spec.id!r} could not be loaded: {error}", reason="dataset_unavailable") from error
    return list(loaded)


def split_rows(spec: DatasetDomain, rows: list[dict[str, Any]]) -> dict[Split, list[dict[str, Any]]]:
    """Rows by split. Raises ``DatasetError`` for missing columns and empty splits."""
    columns = spec.columns
    wanted = [name for name in (columns.problem, columns.answer, columns.solution, columns.split) if name is not None]
    for number, row in enumerate(rows, start=1):
        missing = [name for name in wanted if name not in row or row[name] is None]
        if missing:
            raise DatasetError(f"row {number} has no column {missing[0]!r}; its columns are {sorted(row)}")
    splits: dict[Split, list[dict[str, Any]]] = {"train": [], "evaluation": []}
    for row in rows:
        splits[_split_of_row(spec, row)].append(row)
    for name, members in splits.items():
        if not members:
            raise DatasetError(f"the {name} split is empty ({len(rows)} rows in all)")
    return splits


def _split_of_row(spec: DatasetDomain, row: dict[str, Any]) -> Split:
    column = spec.columns.split
    if column is not None:
        value = str(row[column])
        if value not in ("train", "evaluation"):
            raise DatasetError(f"column {column!r} must be train or evaluation, got {value!r}")
        return value
    digest = hashlib.blake2b(str(row[spec.columns.problem]).encode(), digest_size=8).digest()
    share = int.from_bytes(digest, "big") / 2**64
    return "evaluation" if share < spec.evaluation_fraction else "train"


def inspect(spec: DatasetDomain) -> dict[str, Any]:
    """What admission tells about a data set: rows, splits, columns, hash. Raises ``DatasetError``."""
    rows = read_rows(spec)
    splits = split_rows(spec, rows)
    digest = None
    if spec.path is not None:
        with open(spec.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "rows": len(rows),
        "columns": sorted(rows[0]),
        "train": len(splits["train"]),
        "evaluation": len(splits["evaluation"]),
        "sha256": digest,
    }
