"""A user's Jinja template of the teacher's last message: checked by its syntax tree alone, rendered in a limited process.

Invariants: ``check_template`` runs nothing of the template, neither its expressions nor its constants; ``answer`` is called
in a limited process only. The environment is Jinja's immutable sandbox without loader, globals, or the filters that reach
attributes or chance: a template is a function of its variables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.spec.contexts import MAX_TEMPLATE_CHARACTERS, TEMPLATE_VARIABLES

FORBIDDEN_FILTERS = ("attr", "random")
FORBIDDEN_TAGS = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
MAX_RENDERED_CHARACTERS = 200_000


def template_environment() -> ImmutableSandboxedEnvironment:
    """Unknown names and attributes raise; a name that begins with an underscore is no attribute."""
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.globals.clear()
    for name in FORBIDDEN_FILTERS:
        del environment.filters[name]
    return environment


ENVIRONMENT = template_environment()


def check_template(text: str) -> list[str]:
    """Everything that is wrong with a template, in words; empty where nothing is. Needs no process and no torch."""
    if len(text) > MAX_TEMPLATE_CHARACTERS:
        return [f"the template has {len(text)} characters; allowed are {MAX_TEMPLATE_CHARACTERS}"]
    try:
        tree = ENVIRONMENT.parse(text)
        return [*_faults(tree)]
    except TemplateSyntaxError as error:
        return [f"line {error.lineno}: {error.message}"]
    except (RecursionError, ValueError, OverflowError, MemoryError) as error:
        return [f"the template cannot be read: {type(error).__name__}"]


def _faults(tree: nodes.Template) -> Iterator[str]:
    names = list(tree.find_all(nodes.Name))
    own = {name.name for name in names if name.ctx in ("store", "param")} | {macro.name for macro in tree.find_all(nodes.Macro)}
    allowed = {*TEMPLATE_VARIABLES, *own, "loop", "caller", "varargs", "kwargs"}
    for name in names:
        if name.ctx == "load" and name.name not in allowed:
            yield f"line {name.lineno}: unknown variable {name.name!r}; known are {', '.join(TEMPLATE_VARIABLES)}"
    if not any(name.ctx == "load" and name.name == "problem" for name in names):
        yield "the template does not use {{ problem }}, so the teacher would not know what is asked"
    for kind, known in ((nodes.Filter, ENVIRONMENT.filters), (nodes.Test, ENVIRONMENT.tests)):
        for node in tree.find_all(kind):
            if node.name not in known:
                yield f"line {node.lineno}: there is no {kind.__name__.lower()} {node.name!r}"
    for node in tree.find_all(FORBIDDEN_TAGS):
        yield f"line {node.lineno}: a template cannot load another one"
    for node in tree.find_all(nodes.Getattr):
        if node.attr.startswith("_"):
            yield f"line {node.lineno}: attribute {node.attr!r} may not be read"
    for node in tree.find_all(nodes.Getitem):
        if isinstance(node.arg, nodes.Const) and str(node.arg.value).startswith("_"):
            yield f"line {node.lineno}: attribute {node.arg.value!r} may not be read"


def answer(job: tuple[str, dict[str, str]]) -> dict[str, Any]:
    """``{"text": <rendered>}`` of (template, variables). Raises what the template raises, ``ValueError`` where it is too long."""
    text, variables = job
    pieces, length = [], 0
    for piece in ENVIRONMENT.from_string(text).generate(dict.fromkeys(TEMPLATE_VARIABLES, "") | variables):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_RENDERED_CHARACTERS:
            raise ValueError(f"more than {MAX_RENDERED_CHARACTERS} characters were rendered")
    return {"text": "".join(pieces)}
