"""The completion names one letter: the last standalone one counts, so that reasoning may come first."""

from __future__ import annotations

import re
from typing import Any

from cluster.messages import Verdict
from cluster.spec.domains import MultipleChoice


def multiple_choice(spec: MultipleChoice, answer: Any, completion: str) -> Verdict:
    letters = re.findall(rf"(?<![A-Za-z])([{re.escape(spec.choices)}])(?![A-Za-z])", completion)
    if not letters:
        return Verdict(score=0.0, passed=False, feedback=f"answer with one of the letters {', '.join(spec.choices)}")
    if letters[-1] == str(answer).strip():
        return Verdict(score=1.0, passed=True)
    return Verdict(score=0.0, passed=False, feedback=f"{letters[-1]} is not the right choice", details={"given": letters[-1]})
