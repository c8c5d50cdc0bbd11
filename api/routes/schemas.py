"""/v1/schemas: the JSON Schema of the job file."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from cluster.spec.job import JobSpec

router = APIRouter(prefix="/v1/schemas", tags=["service"])


@router.get("/job")
def get_job_schema() -> dict[str, Any]:
    """For editors and validators: ``# yaml-language-server: $schema=...``."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **JobSpec.model_json_schema()}
