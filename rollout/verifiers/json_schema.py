"""The completion is JSON that a JSON Schema accepts; the schema is the verifier's own or the row's answer.

A schema is data: references in it are never fetched.
"""

from __future__ import annotations

import json
from typing import Any

from cluster.messages import Verdict
from cluster.spec.domains import JsonSchemaVerifier


def json_schema(spec: JsonSchemaVerifier, answer: Any, completion: str) -> Verdict:
    """Passes where the whole completion is one JSON value that the schema accepts. Raises where the schema is none."""
    import jsonschema
    import referencing

    schema = schema_of(spec, answer)
    try:
        given = json.loads(completion, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return Verdict(score=0.0, passed=False, feedback=f"not JSON: {error}")
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    fault = jsonschema.exceptions.best_match(kind(schema, registry=referencing.Registry()).iter_errors(given))
    if fault is None:
        return Verdict(score=1.0, passed=True)
    return Verdict(score=0.0, passed=False, feedback=f"at {fault.json_path}: {fault.message[:200]}")


def schema_of(spec: JsonSchemaVerifier, answer: Any) -> Any:
    """The schema for a row, as JSON. Raises ``ValueError`` where it is not JSON or not a JSON Schema."""
    import jsonschema

    schema = spec.json_schema
    if schema is None:
        schema = json.loads(answer) if isinstance(answer, str) else answer
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"not a JSON Schema: at {error.json_path}: {error.message[:200]}") from error
    return schema


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
