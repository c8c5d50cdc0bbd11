"""The completion is JSON that a JSON Schema accepts; the schema is the verifier's own or the row's answer."""

from __future__ import annotations

import json
from typing import Any

from cluster.messages import Verdict
from cluster.spec.domains import JsonSchemaVerifier


def json_schema(spec: JsonSchemaVerifier, answer: Any, completion: str) -> Verdict:
    import jsonschema

    schema = spec.json_schema
    if schema is None:
        schema = json.loads(answer) if isinstance(answer, str) else answer
    try:
        given = json.loads(completion)
    except (ValueError, RecursionError) as error:
        return Verdict(score=0.0, passed=False, feedback=f"not JSON: {error}")
    fault = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(given))
    if fault is None:
        return Verdict(score=1.0, passed=True)
    return Verdict(score=0.0, passed=False, feedback=f"at {fault.json_path}: {fault.message[:200]}")
