"""Reading a job file from disk, changing it by ``--set``, and checking it with no service at hand.

Invariant: what is checked here is checked by the very functions that the service uses, so the answers agree.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from api.commands.console import Refused
from api.job_paths import with_absolute_paths


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML that refuses a key twice in one mapping, instead of taking the last one."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if isinstance(key, str) and key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} appears twice", key_node.start_mark)
        seen.add(key if isinstance(key, str) else str(key))
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeys.add_constructor("tag:yaml.org,2002:map", _mapping)


def load(path: Path, changes: Sequence[str] = ()) -> Any:
    """The content of a YAML or JSON job file with ``a.b=value`` changes and absolute paths. Raises ``Refused``."""
    return with_paths(read(path, changes), path.parent)


def read(path: Path, changes: Sequence[str] = ()) -> Any:
    """The content of a YAML or JSON file, with ``a.b=value`` changes. Raises ``Refused`` with file, line and column."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"cannot read {path}: {error}") from None
    try:
        loader = _UniqueKeys(text)
        try:
            payload = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError) as error:
        raise Refused(f"{path} is not YAML or JSON: {' '.join(str(error).split())}") from None
    return changed(payload, changes, path.parent)


def changed(payload: Any, changes: Sequence[str], folder: Path) -> Any:
    """With ``a.b=value`` changes, and paths as in ``with_paths``. Raises ``Refused``."""
    for change in changes:
        _apply(payload, change)
    return with_paths(payload, folder)


def with_paths(payload: Any, folder: Path) -> Any:
    """Relative paths become absolute: against the current folder, or else against the job file's own."""
    if not isinstance(payload, dict):
        return payload
    return with_absolute_paths(with_absolute_paths(payload), folder.absolute())


def _apply(payload: Any, change: str) -> None:
    """Set one value in place; the value is read as YAML, a stage may be named by number or by name."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise Refused(f"--set {change!r} is not of the form a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Refused(f"--set {change!r}: the value is not YAML: {' '.join(str(error).split())}") from None
    keys, holder = path.split("."), payload
    for index, key in enumerate(keys):
        where = ".".join(keys[: index + 1])
        last = index == len(keys) - 1
        if isinstance(holder, list):
            position = _position(holder, key, where)
            if last:
                holder[position] = value
            else:
                holder = holder[position]
        elif isinstance(holder, dict):
            if last:
                holder[key] = value
            else:
                holder = holder.setdefault(key, {})
        else:
            raise Refused(f"--set {change!r}: {'.'.join(keys[:index]) or 'the file'} has no parts")


def _position(items: list[Any], key: str, where: str) -> int:
    if key.isdigit() and int(key) < len(items):
        return int(key)
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if key in names:
        return names.index(key)
    known = ", ".join(str(name) for name in names if name is not None)
    raise Refused(f"--set {where}: there is no item {key!r}; there are {len(items)}{': ' + known if known else ''}")


def check(payload: Any, settings: Any) -> Any:
    """The plan of a job file (``api.schemas.Plan``), made here. Raises ``SpecError`` with every fault."""
    from api.cluster_view import cluster_resources
    from api.plan import make_plan
    from api.submission import check_submission

    cluster = cluster_resources(settings)
    return make_plan(check_submission(json.loads(json.dumps(payload, default=str)), base_dir=Path.cwd(), cluster=cluster), cluster)
