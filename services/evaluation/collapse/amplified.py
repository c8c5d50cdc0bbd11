"""The detectors that read counts: which n-grams and format pieces are in far more completions than at the base, and than in the
domain's solutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from services.evaluation.collapse.amplification import Amplification, Amplified
from services.evaluation.collapse.records import Reading

LIFT = 4.0
"""Times the share at the base."""

Describe = Callable[[str], str]


def amplification_reading(
    counts: Amplification, kind: str, describe: Describe, *, least_z: float, ready: bool, reference: str
) -> Reading | None:
    """None before the base is complete; ``reference`` says what the base is."""
    if not ready:
        return None
    found = counts.amplified()
    if not found:
        return Reading(level=0.0, message=f"no {kind} is amplified")
    strength = max(_level(one, least_z) for one in found)
    worst = max(found, key=lambda one: _level(one, least_z))
    return Reading(
        level=strength,
        message=_message(kind, describe(worst.item), worst, reference),
        evidence={"amplified": _table(found, describe), "reference": reference},
    )


def _level(one: Amplified, least_z: float) -> float:
    return min(one.lift / LIFT, one.z / least_z)


def _message(kind: str, item: str, worst: Amplified, reference: str) -> str:
    said = f"{kind} {item!r} is in {worst.share_now:.1%} of the completions, "
    if worst.share_solutions is None:
        return said + f"{worst.lift:.1f} times as many as {reference} ({worst.share_base:.1%})"
    return said + (
        f"{worst.lift:.1f} times as many as {reference} ({worst.share_base:.1%}) or in the domain's solutions ({worst.share_solutions:.1%})"
    )


def _table(found: Sequence[Amplified], describe: Describe) -> list[dict]:
    return [asdict(one) | {"text": describe(one.item)} for one in found]
