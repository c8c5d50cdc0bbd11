"""Every kind that the spec accepts has an entry in its table, and every table entry can be asked for."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
import yaml

from cluster.spec import composition, domains
from cluster.spec.job import JobSpec
from cluster.spec.recipes import RECIPES, MethodSpec
from rollout.context import CONTEXTS
from rollout.domains import DOMAINS
from rollout.sources import SOURCES
from rollout.verifiers import VERIFIERS
from services.teacher.strategies import STRATEGIES
from trainer.objectives import OBJECTIVES

ROOT = Path(__file__).resolve().parents[2]


def _kinds(union, tag: str = "kind") -> set[str]:
    members = typing.get_args(typing.get_args(union)[0])
    return {member.model_fields[tag].default for member in members}


@pytest.mark.parametrize(
    ("union", "table"),
    [
        (composition.ObjectiveSpec, OBJECTIVES),
        (composition.TeacherSpec, STRATEGIES),
        (composition.ContextSpec, CONTEXTS),
        (composition.ExperienceSpec, SOURCES),
        (domains.DomainSpec, DOMAINS),
        (domains.VerifierSpec, VERIFIERS),
    ],
    ids=["objectives", "teachers", "contexts", "experience", "domains", "verifiers"],
)
def test_spec_kinds_and_table_keys_agree(union, table):
    assert _kinds(union) == set(table)


def test_recipes_agree():
    assert _kinds(MethodSpec, "recipe") == set(RECIPES)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_job_file_parses_and_resolves(path):
    job = JobSpec.model_validate(yaml.safe_load(path.read_text()))
    for stage in job.resolved_stages():
        assert stage.composition.terms
