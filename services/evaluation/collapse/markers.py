"""Words with which a completion doubts or takes back what it wrote: a small English list of our own, with a version.

Matched in lower case between word boundaries. A change of the list changes the figures: raise ``MARKERS_VERSION`` with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MARKERS_VERSION = "holdfast-markers-1"

MARKERS: dict[str, tuple[str, ...]] = {
    "hedging": (
        "maybe", "perhaps", "possibly", "probably", "presumably", "i think", "i guess", "i suppose", "i believe", "it seems",
        "it appears", "might be", "could be", "not sure", "unsure", "not certain", "as far as i know", "roughly speaking",
    ),
    "self_correction": (
        "wait", "hold on", "hmm", "actually", "let me recheck", "let me re-check", "let me check again", "let me try again",
        "let me reconsider", "on second thought", "scratch that", "i made a mistake", "that is wrong", "that's wrong",
        "that is not right", "that's not right", "correction", "i was wrong", "start over", "no, ",
    ),
}  # fmt: skip


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(rf"\b{re.escape(word)}" + (r"\b" if word[-1].isalnum() else "") for word in longest_first))


PATTERNS = {name: _pattern(words) for name, words in MARKERS.items()}


def marker_counts(texts: Iterable[str]) -> dict[str, int]:
    """Per kind of marker the occurrences in all texts; overlapping ones count once, the longest."""
    lowered = "\n".join(texts).lower()
    return {name: sum(1 for _ in pattern.finditer(lowered)) for name, pattern in PATTERNS.items()}
