"""What a job reads besides its base model, by content: data sets, given checkpoints, teachers.

Invariant: keys are places in the job file, because the paths of an accepted job are those of one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.spec.job import JobSpec
from cluster.spec.teachers import external_key, external_teachers
from services.jobs.data_sets import data_sets
from services.jobs.faults import pointer
from services.jobs.method_files import initial_blends


def input_hashes(spec: JobSpec, resolved: Mapping[str, Any]) -> dict[str, str]:
    """sha256 by place, of what admission hashed (``resolved``); what it only pinned to a revision is not among them."""
    found: dict[str, str | None] = {}
    for where, domain in data_sets(spec):
        found[pointer(where)] = resolved.get("datasets", {}).get(domain.path or domain.id, {}).get("sha256")
    for stage in spec.resolved_stages():
        if stage.policy is not None:
            found[pointer(("stages", stage.index, "policy"))] = resolved.get("policy_sha256", {}).get(external_key(stage.policy))
        teacher = stage.composition.teacher
        keys = [*map(external_key, external_teachers(teacher)), *(blend.path for blend in initial_blends(teacher))]
        for index, key in enumerate(keys):
            found[pointer(("stages", stage.index, "method", "teachers", index))] = resolved.get("teacher_sha256", {}).get(key)
    return {place: sha256 for place, sha256 in found.items() if sha256 is not None}


def same_inputs(one: Mapping[str, str] | None, other: Mapping[str, str] | None) -> bool:
    """Whether nothing that both sides know has another content."""
    one, other = one or {}, other or {}
    return all(one[place] == other[place] for place in one.keys() & other.keys())
