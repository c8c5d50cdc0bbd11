"""The completion's final expression equals the answer, by the math-verify library.

The library's own timeouts use signals and can hang; they are off, and the pool's deadline ends the process instead.
"""

from __future__ import annotations

from typing import Any

from cluster.messages import Verdict
from cluster.spec.domains import MathEquivalence


def math_equivalence(spec: MathEquivalence, answer: Any, completion: str) -> Verdict:
    from math_verify import parse, verify

    wanted = parse(str(answer), parsing_timeout=None)
    given = parse(completion, parsing_timeout=None)
    if not given:
        return Verdict(score=0.0, passed=False, feedback="no mathematical answer was found")
    if verify(wanted, given, timeout_seconds=None):
        return Verdict(score=1.0, passed=True)
    return Verdict(score=0.0, passed=False, feedback=f"{str(given[0])[:80]} is not equal to the answer")
