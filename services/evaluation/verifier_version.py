"""Which verifier judged: a digest of the code that judges, and of its settings.

Invariant: it changes where a statement of the judging modules or a setting of the verifier changes, and not with comments,
doc strings or layout; so nobody has to remember to raise a number. The modules are that of the domain's class, that of a data
set's named verifier, and the verifier modules that these import.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import inspect
import sys
from types import ModuleType
from typing import Any

VERIFIERS_PACKAGE = "rollout.verifiers"
DATA_SETS = "rollout.domains.dataset"
"""Judges by a named verifier; its own module is about reading rows."""


def verifier_version(domain: Any) -> str:
    """Hexadecimal, 16 characters."""
    module = type(domain).__module__
    verifier = getattr(getattr(domain, "_spec", None), "verifier", None)
    digest = hashlib.blake2b(digest_size=8)
    if verifier is not None:
        digest.update(verifier.model_dump_json().encode())
        module = f"{VERIFIERS_PACKAGE}.{verifier.kind}" if module == DATA_SETS else module
    for code in _judging_code(module):
        digest.update(code.encode())
    return digest.hexdigest()


@functools.cache
def _judging_code(first: str) -> tuple[str, ...]:
    """Statements of a module and of the verifier modules that it imports, by module name."""
    waiting, found = [first], {}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        tree = ast.parse(inspect.getsource(_module(name)))
        imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
        waiting += [module for module in imported if module.startswith(f"{VERIFIERS_PACKAGE}.")]
        found[name] = statements(tree)
    return tuple(found[name] for name in sorted(found))


def statements(tree: ast.Module) -> str:
    """The code without comments, layout and bare strings."""
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if isinstance(body, list):
                setattr(node, field, [item for item in body if not _is_text(item)] or ([ast.Pass()] if field == "body" else []))
    return ast.unparse(tree)


def _module(name: str) -> ModuleType:
    return sys.modules.get(name) or importlib.import_module(name)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
