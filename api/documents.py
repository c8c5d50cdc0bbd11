"""From the bytes of a request to plain JSON values, refusing what could hurt later.

Invariant: what ``read_document`` returns is a tree of dict, list, str, int, finite float, bool and None, at most
``MAX_DEPTH`` deep and ``max_values`` large, whose strings encode as UTF-8; anything else is a ``malformed_body``.
"""

from __future__ import annotations

import json
import math
from typing import Any

import yaml

from api.problems import ProblemError

MAX_DEPTH = 64
MAX_VALUES = 20_000
YAML_TYPES = ("application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml")


def read_document(body: bytes, content_type: str | None, *, max_values: int = MAX_VALUES) -> Any:
    """Parse a JSON or YAML body; ``max_values`` may be larger for JSON alone. Raises ``ProblemError`` (``malformed_body``, ``unsupported_media_type``)."""
    media_type = (content_type or "").split(";")[0].strip().lower()
    if media_type != "application/json" and media_type not in YAML_TYPES:
        raise ProblemError("unsupported_media_type", f"the body's media type is {media_type or 'not given'}; send application/json or application/yaml")
    try:
        text = body.decode("utf-8")
        document = _read_yaml(text) if media_type in YAML_TYPES else _read_json(text)
    except RecursionError:
        raise _malformed(f"the document is nested deeper than {MAX_DEPTH} levels") from None
    except (ValueError, yaml.YAMLError) as error:
        raise _malformed(f"the body is not {'YAML' if media_type in YAML_TYPES else 'JSON'}: {_one_line(error)}") from None
    check_tree(document, max_values)
    return document


def _malformed(detail: str) -> ProblemError:
    return ProblemError("malformed_body", detail)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _read_json(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_pairs)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:80]!r} appears twice in one object")
        found[key] = value
    return found


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Safe YAML with unique string keys; dates stay text."""


def _construct_mapping(loader: Any, node: yaml.MappingNode, deep: bool = True) -> dict[str, Any]:
    return _unique_pairs([(_text_key(loader, key), loader.construct_object(value, deep=True)) for key, value in node.value])


def _text_key(loader: Any, node: yaml.Node) -> str:
    key = loader.construct_object(node, deep=True)
    if not isinstance(key, str):
        raise ValueError(f"the key {str(key)[:80]!r} in line {node.start_mark.line + 1} is not text")
    return key


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if not tag.endswith((":timestamp", ":merge"))]
    for first, resolvers in _StrictLoader.yaml_implicit_resolvers.items()
}


def _read_yaml(text: str) -> Any:
    _check_yaml_events(text)
    loader = _StrictLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _check_yaml_events(text: str) -> None:
    """Depth, size and aliases, before anything recursive sees the document (the composer's recursion is in C)."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_StrictLoader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"line {event.start_mark.line + 1}: anchors and aliases are not accepted over HTTP; send the expanded document")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise RecursionError
        if count > 4 * MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES} values")


def check_tree(document: Any, max_values: int = MAX_VALUES) -> None:
    """Walk the tree without recursion and refuse what JSON, UTF-8 or PostgreSQL could not hold."""
    pending: list[tuple[Any, int]] = [(document, 1)]
    seen = 0
    while pending:
        value, depth = pending.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise _malformed(f"the document is nested deeper than {MAX_DEPTH} levels")
        if seen > max_values:
            raise _malformed(f"the document holds more than {max_values} values")
        if isinstance(value, dict):
            for key in value:
                _check_text(key)
            pending.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list):
            pending.extend((item, depth + 1) for item in value)
        elif isinstance(value, str):
            _check_text(value)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise _malformed("the document holds a number that is not finite")
        elif isinstance(value, int):
            if abs(value) >= 2**63:
                raise _malformed("the document holds an integer of more than 63 bits")
        elif value is not None:
            raise _malformed(f"the document holds a value of type {type(value).__name__}, which JSON does not have")


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise _malformed("the document holds a NUL character")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise _malformed("the document holds half of a surrogate pair") from None
