"""A job's own log: the truth about its metrics, append-only, one JSON object a line in ``log.jsonl`` of the run folder.

It is written like a write-ahead log. ``commit`` makes everything before it final; ``rewind`` says that a restart took the
job back to a step, which voids what was written after that step and not committed. Readers apply both, so a repeated step
counts once. Timestamps are taken when a record is written and never again.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOG = "log.jsonl"


class RunLog:
    """One writer at a time: the lead of the job's current attempt."""

    def __init__(self, run_dir: Path):
        run_dir.mkdir(parents=True, exist_ok=True)
        self._path = run_dir / LOG
        _drop_torn_line(self._path)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - lives as long as the attempt

    def metrics(
        self,
        *,
        stage: str | None,
        stage_index: int | None,
        step: int,
        global_step: int,
        values: dict[str, float],
        timestamp_ms: int | None = None,
    ) -> None:
        """Scalars of one step. Values that are not finite are kept out and named, so that nothing fails on them later."""
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        lost = sorted(set(values) - set(finite))
        self._write("metrics", global_step, timestamp_ms, stage=stage, stage_index=stage_index, step=step, values=finite, not_finite=lost)

    def table(self, name: str, rows: list[dict[str, Any]], *, stage: str | None, global_step: int) -> None:
        self._write("table", global_step, name=name, rows=rows, stage=stage)

    def params(self, stage: str | None, values: dict[str, Any], *, global_step: int = 0) -> None:
        self._write("params", global_step, stage=stage, values=values)

    def dataset(self, name: str, digest: str, context: str, *, stage: str | None = None, global_step: int = 0) -> None:
        self._write("dataset", global_step, name=name, digest=digest, context=context, stage=stage)

    def checkpoint(self, *, name: str, uri: str, stage: str, global_step: int) -> None:
        self._write("checkpoint", global_step, name=name, uri=uri, stage=stage)

    def artifact(self, path: Path, artifact_path: str, *, stage: str | None, global_step: int) -> None:
        self._write("artifact", global_step, path=str(path), artifact_path=artifact_path, stage=stage)

    def stage_start(self, stage: str, stage_index: int, global_step: int) -> None:
        self._write("stage_start", global_step, stage=stage, stage_index=stage_index)

    def stage_end(self, stage: str, stage_index: int, global_step: int) -> None:
        self._write("stage_end", global_step, stage=stage, stage_index=stage_index)

    def commit(self, global_step: int) -> None:
        """Everything up to here is final, and on disk when this returns."""
        self._write("commit", global_step)
        os.fsync(self._file.fileno())

    def rewind(self, global_step: int) -> None:
        """The job goes on from this step; uncommitted records after it are void."""
        self._write("rewind", global_step)

    def close(self) -> None:
        self._file.close()

    def _write(self, kind: str, global_step: int, timestamp_ms: int | None = None, **fields: Any) -> None:
        time_ms = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
        record = {"kind": kind, "global_step": global_step, "time_ms": time_ms, **_plain(fields)}
        self._file.write(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
        self._file.flush()


def _drop_torn_line(path: Path) -> None:
    """A writer that was killed may have left half a line; the next record must not be glued to it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _plain(value: Any) -> Any:
    """What JSON can hold: numpy's and torch's numbers as Python's, numbers that are not finite as None, the rest as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Whole records from a byte offset on, each with the offset after it."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield json.loads(line), offset


def effective_records(records: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records in order, without commits and rewinds, and without what a rewind voided."""
    final: list[dict[str, Any]] = []
    pending: list[dict[str, Any]] = []
    for record in records:
        if record["kind"] == "commit":
            final += pending
            pending = []
        elif record["kind"] == "rewind":
            # what was committed beyond the step is done again, too: its checkpoint was found damaged
            final, pending = (
                [item for item in part if item["global_step"] <= record["global_step"]] for part in (final, pending)
            )
        else:
            pending.append(record)
    return final + pending


def read_metrics(
    run_dir: Path, *, key: str | None = None, stage: str | None = None, since_step: int | None = None, max_points: int | None = None
) -> list[dict[str, Any]]:
    """Points with key, stage, step, global_step, value and time_ms; the last value of a (key, stage, step) counts.

    Works while the log is being written. ``since_step`` is of the stage where one is given, of the job otherwise. Beyond ``max_points`` every series (key, stage) is thinned evenly, and keeps its
    last point.
    """
    points: dict[tuple[str, str | None, int], dict[str, Any]] = {}
    for record in effective_records(record for record, _ in read_records(run_dir / LOG)):
        if record["kind"] != "metrics" or (stage is not None and record["stage"] != stage):
            continue
        if since_step is not None and record["step" if stage is not None else "global_step"] < since_step:
            continue
        for name, value in record["values"].items():
            if key is None or name == key:
                points[name, record["stage"], record["step"]] = {
                    "key": name,
                    "stage": record["stage"],
                    "step": record["step"],
                    "global_step": record["global_step"],
                    "value": value,
                    "time_ms": record["time_ms"],
                }
    chosen = list(points.values())
    return chosen if max_points is None or len(chosen) <= max_points else _thinned(chosen, max_points)


def _thinned(points: list[dict[str, Any]], max_points: int) -> list[dict[str, Any]]:
    series: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for point in points:
        series.setdefault((point["key"], point["stage"]), []).append(point)
    quota = max(1, max_points // len(series))
    kept: set[int] = set()
    for members in series.values():
        count = min(quota, len(members))
        kept |= {id(members[(index + 1) * len(members) // count - 1]) for index in range(count)}
    return [point for point in points if id(point) in kept]
