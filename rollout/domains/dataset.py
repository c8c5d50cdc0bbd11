"""A user's own data set as a domain, with a named verifier.

Invariant: the content of a row's prompt, or its split column, decides its split; no prompt is ever in both. Templates are
plain replacement: nothing in a row or a template can reach an attribute or run.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

from cluster.messages import Problem, Verdict
from cluster.spec.domains import DatasetDomain
from rollout.domains.base import Split
from rollout.domains.rows import MAX_FAULTS, DatasetError, Row, Rows, data_file, dataset_error, fault, read_rows
from rollout.verifiers import ANSWER_CHECKS, SOLUTIONS, VERIFIERS

__all__ = ["Dataset", "DatasetError", "inspect", "render"]

PLACEHOLDER = re.compile(r"\{\{(?P<literal>\w+)\}\}|\{(?P<column>[A-Za-z_]\w*)\}")
"""``{column}`` is replaced, ``{{word}}`` stands for ``{word}``, and any other brace for itself."""


class Dataset:
    """Rows in an order that is a function of the seed and the epoch; an index beyond the end starts the next epoch."""

    def __init__(self, spec: DatasetDomain, name: str, seed: int):
        self.name = name
        self._spec = spec
        self._seed = seed
        self._rows: dict[Split, list[Row]] | None = None
        self._orders: dict[Split, tuple[int, list[int]]] = {}

    def size(self, split: Split) -> int | None:
        """Rows of the split. Raises ``DatasetError`` where the data set cannot be used."""
        return len(self._split(split))

    def problem(self, split: Split, index: int) -> Problem:
        """Row ``index % size`` of the order of epoch ``index // size``."""
        if index < 0:
            raise IndexError(f"problem index must not be negative, got {index}")
        row = self._row(split, index)
        spec, columns = self._spec, self._spec.columns
        answer = _plain(row[columns.answer])
        system = [{"role": "system", "content": spec.system}] if spec.system else []
        if columns.solution is not None:
            solution = _text(row[columns.solution])
        else:
            solution = SOLUTIONS[spec.verifier.kind](spec.verifier, answer)
        return Problem(
            problem_id=f"{self.name}/{split}/{index}",
            domain=self.name,
            messages=(*system, {"role": "user", "content": render(spec.template, row, columns.problem)}),
            solution=solution,
            answer=answer,
        )

    def verify(self, problem: Problem, completion_text: str) -> Verdict:
        verifier = self._spec.verifier
        return VERIFIERS[verifier.kind](verifier, problem.answer, completion_text)

    def __getstate__(self) -> dict[str, Any]:
        """Only what ``verify`` needs travels to a verifier process; the rows stay here."""
        return {**self.__dict__, "_rows": None, "_orders": {}}

    def _split(self, split: Split) -> list[Row]:
        if self._rows is None:
            self._rows, _ = split_rows(self._spec, read_rows(self._spec, wanted_columns(self._spec)))
        return self._rows[split]

    def _row(self, split: Split, index: int) -> Row:
        rows = self._split(split)
        epoch, position = divmod(index, len(rows))
        known = self._orders.get(split)
        if known is None or known[0] != epoch:
            order = list(range(len(rows)))
            random.Random(f"{self.name}/{self._seed}/{split}/{epoch}").shuffle(order)
            known = self._orders[split] = (epoch, order)
        return rows[known[1][position]]


def render(template: str, row: Row, problem_column: str) -> str:
    """The template with ``{problem}`` and ``{column}`` replaced by the row's values, once and as text."""

    def value(match: re.Match[str]) -> str:
        if match["literal"] is not None:
            return "{" + match["literal"] + "}"
        return _text(row[_column(match["column"], problem_column)])

    return PLACEHOLDER.sub(value, template)


def _column(placeholder: str, problem_column: str) -> str:
    """``{problem}`` is the problem column, also where a column of that very name exists."""
    return problem_column if placeholder == "problem" else placeholder


def wanted_columns(spec: DatasetDomain) -> dict[str, str]:
    """The columns that the spec needs, each with the pointer of the first field that names it."""
    columns = spec.columns
    wanted: dict[str, str] = {}
    for field in ("problem", "answer", "solution", "split"):
        name = getattr(columns, field)
        if name is not None:
            wanted.setdefault(name, f"/columns/{field}")
    for match in PLACEHOLDER.finditer(spec.template):
        if match["column"] is not None:
            wanted.setdefault(_column(match["column"], columns.problem), "/template")
    return wanted


def split_rows(spec: DatasetDomain, data: Rows) -> tuple[dict[Split, list[Row]], int]:
    """Rows by split, and how many were left out: repeated evaluation prompts, and training prompts that are evaluated.

    Raises ``DatasetError`` that lists missing columns, answers that cannot be right, and empty splits.
    """
    faults = _column_faults(spec, data) or _value_faults(spec, data.rows)
    if faults:
        raise dataset_error(faults[:MAX_FAULTS])
    train: list[tuple[str, Row]] = []
    evaluation: dict[str, Row] = {}
    for row in data.rows:
        content = " ".join(render(spec.template, row, spec.columns.problem).split())
        if _is_evaluation(spec, row, content):
            evaluation.setdefault(content, row)
        else:
            train.append((content, row))
    splits: dict[Split, list[Row]] = {
        "train": [row for content, row in train if content not in evaluation],
        "evaluation": list(evaluation.values()),
    }
    pointer = "/evaluation_fraction" if spec.columns.split is None else "/columns/split"
    for name, rows in splits.items():
        if not rows:
            faults.append(fault(pointer, f"the {name} split is empty ({len(data.rows)} rows in all)"))
    if faults:
        raise dataset_error(faults)
    return splits, len(data.rows) - sum(map(len, splits.values()))


def _is_evaluation(spec: DatasetDomain, row: Row, content: str) -> bool:
    if spec.columns.split is not None:
        return row[spec.columns.split] == "evaluation"
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < spec.evaluation_fraction * 2**64


def _column_faults(spec: DatasetDomain, data: Rows) -> list[dict[str, str]]:
    faults = []
    for name, pointer in wanted_columns(spec).items():
        if data.columns and name not in data.columns:
            faults.append(fault(pointer, f"column {name!r} does not exist; the columns are {', '.join(data.columns)}"))
            continue
        first = next((number for number, row in enumerate(data.rows, start=1) if row.get(name) is None), None)
        if first is not None:
            faults.append(fault(pointer, f"row {first} has no value in column {name!r}"))
    return faults


def _value_faults(spec: DatasetDomain, rows: list[Row]) -> list[dict[str, str]]:
    faults = []
    check, columns = ANSWER_CHECKS.get(spec.verifier.kind), spec.columns
    for number, row in enumerate(rows, start=1):
        if columns.split is not None and row[columns.split] not in ("train", "evaluation"):
            told = f"row {number}: column {columns.split!r} must be train or evaluation, got {row[columns.split]!r}"
            faults.append(fault("/columns/split", told))
        if check is not None:
            try:
                check(spec.verifier, _plain(row[columns.answer]))
            except ValueError as error:
                faults.append(fault("/columns/answer", f"row {number}: {error}"))
        if len(faults) >= MAX_FAULTS:
            break
    return faults


def _plain(value: Any) -> Any:
    """A value as JSON can hold it: Parquet has dates and decimals."""
    return json.loads(json.dumps(value, default=str))


def _text(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False) if isinstance(value, dict | list) else str(value)


def inspect(spec: DatasetDomain, base_dir: Path | None = None) -> dict[str, Any]:
    """What admission tells about a data set: rows, columns, train, evaluation, left_out, sha256 (of the file, or of the
    rows of a Hugging Face id). Raises ``DatasetError`` whose ``details["faults"]`` lists everything that is wrong."""
    data = read_rows(spec, wanted_columns(spec), base_dir)
    splits, left_out = split_rows(spec, data)
    return {
        "rows": len(data.rows),
        "columns": data.columns,
        "train": len(splits["train"]),
        "evaluation": len(splits["evaluation"]),
        "left_out": left_out,
        "sha256": _sha256(spec, data.rows, base_dir),
    }


def _sha256(spec: DatasetDomain, rows: list[Row], base_dir: Path | None) -> str:
    if spec.path is not None:
        with open(data_file(spec, base_dir), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
