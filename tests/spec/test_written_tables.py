"""Tables in the READMEs that speak of the spec: the recipes, and every knob with its field. Neither may go stale."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.recipe_table import COLUMNS, ROWS, recipe_table
from cluster.spec.job import JobSpec
from cluster.spec.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = JobSpec.model_json_schema()


def test_the_recipes_of_the_trainers_readme_are_those_of_the_code():
    text = (ROOT / "trainer" / "README.md").read_text()
    written = text.partition("<!-- recipes -->\n")[2].partition("<!-- /recipes -->")[0]
    assert written == recipe_table(), "paste the output of `holdfast schema --recipes` between the two marks"


def test_every_recipe_but_custom_has_a_row():
    assert {parameters["recipe"] for parameters, _ in ROWS} == set(RECIPES) - {"custom"}
    rows = [line for line in recipe_table().splitlines() if line.startswith("| `")]
    assert len(rows) == len(ROWS) and all(line.count(" | ") == len(COLUMNS) - 1 for line in rows)


@pytest.mark.parametrize(
    ("row", "cells"),
    [
        ("| `grpo` | ", ["PG of A, clip 0.2", "sequence_mean", "group_mean, scale group_std", "2402.03300"]),
        ("| `sdpo` variant code | ", ["ema 0.05", "sibling_solution", "JSD 0.5", "top 100 of policy, bucket", "samples without a target count"]),
        ("| `sdft` | ", ["ema 0.01 per optimizer step", "demonstration", "FKL", "skip_first 3; cap 2 per sequence"]),
        ("| `exopd` | ", ["mix anchor^-0.25 external^1.25", "PG of log q/p", "cap 5"]),
        ("| `eopd` | ", ["sampled<br>top 16 of teacher, bucket", "entropy_threshold teacher > 0.8 nats, of all"]),
        ("| `opsd` | ", ["frozen", "entry_clip 0.05", "full"]),
        ("| `prefix_opd` | ", ["prefix 256 + 16 per step"]),
    ],
)
def test_what_a_row_says(row, cells):
    (line,) = [line for line in recipe_table().splitlines() if line.startswith(row)]
    assert [cell for cell in cells if cell not in line] == []


# -- knobs -----------------------------------------------------------------------------------------------------------


def knobs() -> list[str]:
    """Every field that the table names, by its path."""
    text = (ROOT / "cluster" / "spec" / "README.md").read_text()
    offered = text.partition("| knob | field |\n")[2].partition("\n\n")[0]
    return [path for line in offered.splitlines() for path in re.findall(r"`([^`]+)`", line.split("|")[2])]


def alternatives(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schemas that a value here may follow: references, branches of unions, items of lists."""
    if "$ref" in node:
        yield from alternatives(SCHEMA["$defs"][node["$ref"].rpartition("/")[2]])
        return
    yield node
    for part in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())):
        yield from alternatives(part)
    if isinstance(node.get("items"), dict):
        yield from alternatives(node["items"])


def follow(path: str) -> list[dict[str, Any]]:
    """All schemas at the end of a path that starts at the file or at a stage; empty where there is none."""
    nodes = [SCHEMA, SCHEMA["$defs"]["StageSpec"]]
    for name in path.split("."):
        nodes = [found for node in nodes for found in (one.get("properties", {}).get(name) for one in alternatives(node)) if found]
    return nodes


def allows(path: str, word: str) -> bool:
    """Whether some field at the path may have this value."""
    return any(word in (one.get("const"), *one.get("enum", ())) for node in follow(path) for one in alternatives(node))


def test_the_table_of_knobs_is_read():
    assert len(knobs()) > 80


@pytest.mark.parametrize("knob", sorted(set(knobs())))
def test_every_knob_is_a_field_of_the_job_file(knob):
    path, equals, word = knob.partition("=")
    assert follow(path), f"{path} is no field of the job file"
    assert not equals or allows(path, word), f"{path} cannot be {word}"


def test_a_knob_that_is_not_there_would_be_found():
    assert not follow("method.terms.masks.ratios") and not allows("method.terms.normaliser", "mean") and not follow("method.lora")


@pytest.mark.parametrize("part", ["ObjectiveSpec", "MaskSpec", "TeacherSpec", "ContextSpec", "SupportSpec", "ExperienceSpec", "MethodSpec"])
def test_every_kind_can_be_found_from_a_knob_or_from_the_recipes(part):
    """A new kind of anything is written into the table: by its own name or by a field that only it has."""
    import typing

    from cluster.spec import composition
    from cluster.spec.recipes import MethodSpec

    union = MethodSpec if part == "MethodSpec" else getattr(composition, part)
    tag = "recipe" if part == "MethodSpec" else "kind"
    text = " ".join(knobs()) + " ".join(str(parameters) for parameters, _ in ROWS) + "custom policy none"
    missing = []
    for member in typing.get_args(typing.get_args(union)[0]):
        own = set(member.model_fields) - {tag}
        if member.model_fields[tag].default not in text and not any(re.search(rf"\b{name}\b", text) for name in own):
            missing.append(member.__name__)
    assert missing == []
