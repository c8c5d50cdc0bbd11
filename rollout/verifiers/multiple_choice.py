"""The completion names one letter. One that is announced (``answer: B``, ``\\boxed{B}``) counts before one that merely
stands alone, and a later one before an earlier one, so that reasoning may come first."""

from __future__ import annotations

import re
from typing import Any

from cluster.messages import Verdict
from cluster.spec.domains import MultipleChoice

ANNOUNCEMENT = r"(?i:\banswer(?:\s+is)?\s*:?\s*|\\boxed\{\s*(?:\\text\{)?)[*(\[\s]*"
STANDS_ALONE = r"(?![A-Za-z'])"
ENDS = r"(?=\s*(?:[^\w\s]|$))"
"""What must follow a letter of the other case: else the article in 'the answer is a bird' would be choice A."""


def multiple_choice(spec: MultipleChoice, answer: Any, completion: str) -> Verdict:
    """Passes where the letter is the row's. Raises ``ValueError`` where the row's answer is none of the choices."""
    wanted = letter_of(spec, answer)
    given = _letter_in(spec, completion)
    if given is None:
        return Verdict(score=0.0, passed=False, feedback=f"answer with one of the letters {', '.join(spec.choices)}")
    details = {"given": given}
    if given == wanted:
        return Verdict(score=1.0, passed=True, details=details)
    return Verdict(score=0.0, passed=False, feedback=f"{given} is not the right choice", details=details)


def letter_of(spec: MultipleChoice, answer: Any) -> str:
    """The letter that a row's answer means: a letter of the choices, or a whole number counted from 0."""
    text = str(answer).strip()
    if len(text) == 1 and text in spec.choices:
        return text
    if text.isdecimal() and int(text) < len(spec.choices):
        return spec.choices[int(text)]
    raise ValueError(f"the answer {text[:40]!r} is none of the letters {', '.join(spec.choices)} and no number below {len(spec.choices)}")


def _letter_in(spec: MultipleChoice, completion: str) -> str | None:
    bare = completion.strip().strip("()[].*: ")
    for letter in (bare, bare.swapcase()):
        if len(letter) == 1 and letter in spec.choices:
            return letter
    exact, other = (re.escape(letters) for letters in (spec.choices, spec.choices.swapcase()))
    announced = re.findall(f"{ANNOUNCEMENT}(?:([{exact}]){STANDS_ALONE}|([{other}]){ENDS})", completion)
    if announced:
        return announced[-1][0] or announced[-1][1].swapcase()
    alone = re.findall(f"(?<![A-Za-z'])([{exact}]){STANDS_ALONE}", completion)
    return alone[-1] if alone else None
