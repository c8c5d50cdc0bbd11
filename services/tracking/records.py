"""The lines of a job's log: one JSON object each, appended and never changed.

Invariant: a line counts once its newline is there. ``commit`` makes the lines before it final; ``rewind`` drops what came
after a step and was not final; lines of a writer that another one has replaced are ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOG_NAME = "log.jsonl"
CONTROL = ("open", "commit", "rewind")
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Record = dict[str, Any]


def encode(record: Record) -> bytes:
    """One line. Numbers that are not finite become words, since JSON has none; other objects become their text."""
    return json.dumps(_plain(record), separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    try:
        number = float(value)  # numpy's and torch's scalars too
    except (TypeError, ValueError):
        return str(value)
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def number(value: Any) -> float:
    """A value of ``values`` as a float."""
    return NOT_FINITE[value] if isinstance(value, str) else float(value)


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Whole lines from ``offset`` on, each with the offset behind it. A last line without its newline is left for later."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; a log that does not exist yet is an empty one
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield line, offset


def decode(line: bytes) -> Record | None:
    """The record of a line, or None for a line that a crash cut in two."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None


@dataclass(slots=True)
class Timeline:
    """Follows a log line by line and says what is still true.

    ``pending`` are the records that no commit has made final yet. The state after a commit is (offset, writer), all that a
    reader has to remember to go on from there.
    """

    writer: str | None = None
    offset: int = 0
    pending: list[Record] = field(default_factory=list)
    _seen: int = -1

    def committed(self, path: Path, *, ended: bool = False) -> list[Record]:
        """Records that became final since the last call; all of the rest, too, where the job has ended."""
        final: list[Record] = []
        start = self.offset if self._seen < 0 else self._seen
        for line, behind in read_lines(path, start):
            self._seen = behind
            final += self._take(line, behind)
        if ended:
            final += self.pending
            self.pending = []
            self.offset = max(self.offset, self._seen)
        return final

    def _take(self, line: bytes, behind: int) -> list[Record]:
        record = decode(line)
        if record is None:
            return []
        if record["kind"] == "open":
            self.writer = record["writer"]
        if record.get("writer") != self.writer:
            return []
        if record["kind"] == "rewind":
            self.pending = [item for item in self.pending if item["global_step"] <= record["global_step"]]
        if record["kind"] not in ("commit", "rewind"):
            if record["kind"] != "open":
                self.pending.append(record)
            return []
        final, self.pending, self.offset = self.pending, [], behind
        return final
