"""Named verifiers of data sets, by kind: (spec, answer, completion) -> Verdict, pure."""

from __future__ import annotations

from rollout.verifiers.exact_match import exact_match
from rollout.verifiers.json_schema import json_schema
from rollout.verifiers.math_equivalence import math_equivalence
from rollout.verifiers.multiple_choice import multiple_choice

VERIFIERS = {
    "exact_match": exact_match,
    "multiple_choice": multiple_choice,
    "json_schema": json_schema,
    "math_equivalence": math_equivalence,
}
