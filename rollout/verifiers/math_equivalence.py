"""The completion's final expression equals the answer, by the math-verify library.

The library's own timeouts use signals and can hang; they are off, and the pool's deadline ends the process instead.
"""

from __future__ import annotations

import re
from typing import Any

from cluster.messages import Verdict
from cluster.spec.domains import MathEquivalence

PLAIN_NUMBER = re.compile(r"[-+]?[\d,.]+(?:[eE][-+]?\d+)?")
TWO_WORDS = re.compile(r"[A-Za-z]{2,}[\s,.]+[A-Za-z]{2,}")
MAX_EXPRESSION = 200
SCIENTIFIC = re.compile(r"([-+]?[\d.]+)[eE]([-+]?\d+)")


def math_equivalence(spec: MathEquivalence, answer: Any, completion: str) -> Verdict:
    """Passes where the two are equal as mathematics. Raises ``ValueError`` where the row's answer is none."""
    from math_verify import parse, verify

    wanted = parse(as_latex(str(answer).strip()), parsing_timeout=None)
    if not wanted:
        raise ValueError(f"the answer {str(answer)[:80]!r} is not a mathematical expression")
    given = _whole(completion) or parse(completion, parsing_timeout=None)
    if not given:
        return Verdict(score=0.0, passed=False, feedback="no mathematical answer was found")
    if verify(wanted, given, timeout_seconds=None):
        return Verdict(score=1.0, passed=True)
    return Verdict(score=0.0, passed=False, feedback=f"{str(given[0])[:80]} is not equal to the answer")


def as_latex(answer: str) -> str:
    """An answer as the library reads it whole: outside of dollar signs it would take ``2\\sqrt{3}`` for 2."""
    if "$" in answer or "\\boxed" in answer:
        return answer
    scientific = SCIENTIFIC.fullmatch(answer)
    if scientific:
        return f"${scientific[1]} \\times 10^{{{int(scientific[2])}}}$"
    return answer if PLAIN_NUMBER.fullmatch(answer) else f"${answer}$"


def _whole(completion: str) -> list:
    """A completion that is nothing but one expression, without delimiters: the library would take ``1+x^2`` for 1."""
    from math_verify import parse

    text = completion.strip()
    more = len(text) > MAX_EXPRESSION or "\n" in text or "$" in text or "\\boxed" in text or TWO_WORDS.search(text)
    return [] if not text or more else parse(as_latex(text), parsing_timeout=None)
