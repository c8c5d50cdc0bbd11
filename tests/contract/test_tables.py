"""Every kind that the spec accepts has an entry in its table, and every table entry can be asked for."""

from __future__ import annotations

import typing
from pathlib import Path

import pytest
import yaml

from cluster.spec import composition, contexts, domains, masks, objectives, teachers
from cluster.spec.job import JobSpec
from cluster.spec.recipes import RECIPES, MethodSpec
from cluster.spec.study import StudySpec, expand
from rollout.context import CONTEXTS
from rollout.context.sibling_solution import CHOICES
from rollout.context.templates import TEMPLATES
from rollout.domains import DOMAINS
from rollout.sources import SOURCES
from rollout.verifiers import VERIFIERS
from services.teacher.canary import OWN_SHARE
from services.teacher.strategies import SOURCES as MIX_SOURCES
from services.teacher.strategies import STRATEGIES
from trainer.advantages.outcome import BASELINES, SCALES
from trainer.masks import MASKS
from trainer.objectives import OBJECTIVES
from trainer.objectives.full_vocabulary import ENTRIES
from trainer.objectives.kl_estimators import KL_ESTIMATORS
from trainer.term_weights import NORMALISERS

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
        (masks.MaskSpec, MASKS),
        (teachers.MixSource, MIX_SOURCES),
        (composition.TeacherSpec, OWN_SHARE),
        (domains.DomainSpec, DOMAINS),
        (domains.VerifierSpec, VERIFIERS),
    ],
    ids=["objectives", "teachers", "contexts", "experience", "masks", "mix sources", "canary", "domains", "verifiers"],
)
def test_spec_kinds_and_table_keys_agree(union, table):
    assert _kinds(union) == set(table)


@pytest.mark.parametrize(
    ("spec", "field", "table"),
    [
        (composition.Term, "normaliser", NORMALISERS),
        (objectives.AdvantageSpec, "baseline", BASELINES),
        (objectives.AdvantageSpec, "scale", SCALES),
        (objectives.ReferenceKL, "estimator", KL_ESTIMATORS),
        (objectives.RewardPenalty, "estimator", KL_ESTIMATORS),
        (contexts.SiblingSolution, "choice", CHOICES),
        (contexts.WordsSpec, "template", TEMPLATES),
    ],
    ids=["normaliser", "baseline", "scale", "estimator", "reward estimator", "choice", "template"],
)
def test_the_words_of_a_field_and_table_keys_agree(spec, field, table):
    assert _words(spec.model_fields[field].annotation) == set(table)


def _words(annotation) -> set[str]:
    """The strings that a literal, alone or in a union, allows."""
    if typing.get_origin(annotation) is typing.Literal:
        return set(typing.get_args(annotation))
    return {word for part in typing.get_args(annotation) for word in _words(part)}


def test_every_divergence_has_its_form_over_the_vocabulary():
    assert {spec.model_fields["kind"].default for spec in objectives.DIVERGENCES} == set(ENTRIES)


def test_recipes_agree():
    assert _kinds(MethodSpec, "recipe") == set(RECIPES)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_job_file_parses_and_resolves(path):
    job = JobSpec.model_validate(yaml.safe_load(path.read_text()))
    for stage in job.resolved_stages():
        assert bool(stage.composition.terms) != (stage.policy is not None)


@pytest.mark.parametrize("path", sorted((ROOT / "deploy" / "studies").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_member_of_a_shipped_study_parses_and_resolves(path):
    study = StudySpec.model_validate(yaml.safe_load(path.read_text()))
    members = expand(study)
    assert len({member.digest for member in members}) == len(members)
    for arm, order in {(member.arm, member.order): member.document for member in members}:
        document = next(member.document for member in members if (member.arm, member.order) == (arm, order))
        assert JobSpec.model_validate(document).resolved_stages()
