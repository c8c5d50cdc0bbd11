"""Named verifiers of data sets, by kind: (spec, answer, completion) -> Verdict, pure. A new one is one file here, one spec
class, one line, one test."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from cluster.messages import Verdict
from rollout.verifiers.exact_match import exact_match
from rollout.verifiers.json_schema import json_schema, schema_of
from rollout.verifiers.math_equivalence import math_equivalence
from rollout.verifiers.multiple_choice import letter_of, multiple_choice

VERIFIERS: dict[str, Callable[[Any, Any, str], Verdict]] = {
    "exact_match": exact_match,
    "multiple_choice": multiple_choice,
    "json_schema": json_schema,
    "math_equivalence": math_equivalence,
}

ANSWER_CHECKS: dict[str, Callable[[Any, Any], Any]] = {"multiple_choice": letter_of, "json_schema": schema_of}
"""Kinds whose rows may hold an answer that can never be right: (spec, answer), raising ``ValueError``."""


def answer_as_text(spec: Any, answer: Any) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer)


SOLUTIONS: dict[str, Callable[[Any, Any], str]] = dict.fromkeys(VERIFIERS, answer_as_text) | {"multiple_choice": letter_of}
"""The completion that stands in for a row's solution where it has none: (spec, answer)."""
