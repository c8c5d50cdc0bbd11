"""The table of detectors: code, severity and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable

from services.evaluation.collapse import signs
from services.evaluation.collapse.records import Reading, Severity
from services.evaluation.collapse.signs import View

DETECTORS: dict[str, tuple[Severity, Callable[[View], Reading | None]]] = {
    "score_falls": ("critical", signs.score_falls),
    "nothing_right": ("critical", signs.nothing_right),
    "teacher_follows_policy": ("critical", signs.teacher_follows_policy),
    "teacher_turns_away": ("critical", signs.teacher_turns_away),
    "entropy_falls": ("warning", signs.entropy_falls),
    "entropy_rises": ("warning", signs.entropy_rises),
    "answers_shrink": ("warning", signs.answers_shrink),
    "length_tail": ("warning", signs.length_tail),
    "completions_at_cap": ("warning", signs.completions_at_cap),
    "context_missing": ("warning", signs.context_missing),
    "positive_signal_fades": ("warning", signs.positive_signal_fades),
    "gradient_vanishes": ("warning", signs.gradient_vanishes),
    "gap_grows_with_position": ("warning", signs.gap_grows_with_position),
    "repeats_itself": ("warning", signs.repeats_itself),
    "answers_alike": ("warning", signs.answers_alike),
    "hedging": ("warning", signs.hedging),
    "self_correction": ("warning", signs.self_correction),
}

COUNTED: dict[str, tuple[Severity, str, float]] = {
    "ngrams_amplified": ("warning", "the n-gram", 8.0),
    "format_amplified": ("warning", "the format piece", 4.0),
}
"""Detectors of ``amplified.py``: severity, what an item is called, the least z. Completions of one group are not independent: in
groups of 8 a z of 8 is three real standard errors. There are thousands of n-grams to be wrong about, but few format pieces."""
