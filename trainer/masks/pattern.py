"""Tokens that touch a match of a user's regular expression are masked.

The pattern is a user's: it is matched under a deadline, and one that does not end is an error of the stage (reason
``pattern_timeout``), as is one that does not compile (``pattern_invalid``). ``check_pattern`` says the second before a job runs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import regex

from cluster.errors import StageError
from trainer.masks.base import CompletionView, MaskContext

PATTERN_TIMEOUT_S = 1.0
"""For all matches in one completion; a harmless pattern needs a hundredth of it for 16,000 tokens."""
COUNTS = regex.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")
MAX_REPETITIONS = 100_000
"""Of all counts such as {10} or {2,20} multiplied: compiling writes a{n} out n times, before any deadline runs."""


def pattern_mask(view: CompletionView, spec: Any, context: MaskContext) -> np.ndarray:
    text, starts, ends = view.spans
    covered = np.zeros(len(text) + 1, dtype=bool)
    for first, last in _matches(spec.pattern, text):
        covered[first:last] = True
    counts = np.concatenate((np.zeros(1, np.int64), np.cumsum(covered)))
    # a token that spells nothing (the first bytes of a character) belongs to the character at which it stands
    return counts[np.maximum(ends, starts + 1)] == counts[starts]


def check_pattern(pattern: str) -> None:
    """Raise StageError (``pattern_invalid``) for a pattern that is not a regular expression."""
    _compile(pattern)


def _compile(pattern: str) -> Any:
    repetitions = math.prod(max(1, *(int(number or 0) for number in pair)) for pair in COUNTS.findall(pattern))
    if repetitions > MAX_REPETITIONS:
        raise StageError(
            f"mask pattern {pattern!r}: its repetition counts multiply to {repetitions}, allowed are {MAX_REPETITIONS}",
            reason="pattern_invalid",
        )
    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise StageError(f"mask pattern {pattern!r} is not a regular expression: {error}", reason="pattern_invalid") from error


def _matches(pattern: str, text: str) -> list[tuple[int, int]]:
    try:
        return [match.span() for match in _compile(pattern).finditer(text, timeout=PATTERN_TIMEOUT_S)]
    except (TimeoutError, MemoryError) as error:
        raise StageError(
            f"mask pattern {pattern!r} was not matched within {PATTERN_TIMEOUT_S:g} s in a completion of {len(text)} characters; "
            "nested repetitions such as (a+)+ take exponential time",
            reason="pattern_timeout",
        ) from error
