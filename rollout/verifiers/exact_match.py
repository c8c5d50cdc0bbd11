"""The completion is the answer, character by character."""

from __future__ import annotations

from typing import Any

from cluster.messages import Verdict
from cluster.spec.domains import ExactMatch


def exact_match(spec: ExactMatch, answer: Any, completion: str) -> Verdict:
    """Passes where the completion equals the answer as text; blanks around it and case as the spec says."""
    wanted, given = (str(text).strip() if spec.strip else str(text) for text in (answer, completion))
    if spec.ignore_case:
        wanted, given = wanted.casefold(), given.casefold()
    if given == wanted:
        return Verdict(score=1.0, passed=True)
    said = f"{given[:80]!r} is not the answer" if given else "the answer is empty"
    return Verdict(score=0.0, passed=False, feedback=said)
