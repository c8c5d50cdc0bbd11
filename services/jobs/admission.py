"""What a job file asks for, held against the machine: model files, data sets, methods' budgets and files, GPUs.

Invariant: all faults are collected, none stops the search for the others, and nothing of the user's is executed: weights are
looked at by their headers only, and what could carry code is refused. No torch and no Ray here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.errors import ResourceError
from cluster.placement import plan_layout
from cluster.spec.job import JobSpec, ResolvedStage
from services.jobs.data_overlap import check_overlap
from services.jobs.data_sets import check_data_sets
from services.jobs.embedding_model import check_embedding_model
from services.jobs.faults import Fault, pointer, show
from services.jobs.given_policies import check_given_policies
from services.jobs.method_budgets import (
    check_budget,
    check_evaluation_length,
    check_kept_teachers,
    check_lengths,
    check_stage_replay,
    check_support,
)
from services.jobs.method_files import check_replayed, check_teacher_models
from services.jobs.model_files import check_model


def check_environment(
    spec: JobSpec, *, base_dir: Path, cluster: dict[str, float] | None, memo: dict[Any, Any] | None = None
) -> tuple[list[Fault], dict[str, Any]]:
    """Every fault of a job against this machine, and what the names in it were found to be.

    ``base_dir`` is where relative paths start; ``cluster`` is ``{"cpus": ..., "gpus": ...}``, or None where it is not known
    yet. The second value goes into the job's row: ``model_path``, ``model_sha256``, ``model_revision``, ``datasets``, with
    methods that name other models or recorded rollouts ``teachers``, ``teacher_sha256``, ``teacher_revisions``, ``replayed``, and with
    given stages ``policies``, ``policy_sha256``, ``policy_revisions``; ``embedding`` where response drift names a model of its own.
    ``memo`` keeps what was found about models and data sets for the next jobs of one admission.
    """
    base_dir, memo = Path(base_dir), {} if memo is None else memo
    key = ("model", spec.model.model_dump_json(), base_dir)
    if key not in memo:
        memo[key] = check_model(spec.model, base_dir)
    faults, facts, resolved = list(memo[key][0]), memo[key][1], dict(memo[key][2])
    whole = not faults
    stages = spec.resolved_stages()
    for stage in stages:
        faults += check_budget(stage)
        if facts is not None:
            faults += check_lengths(spec, stage, facts) + check_support(stage, facts)
    if facts is not None:
        faults += check_evaluation_length(spec, stages, facts)
    faults += _check_suite_names(spec) + check_kept_teachers(stages) + check_stage_replay(spec)
    more, teachers = check_teacher_models(spec, stages, base_dir, resolved.get("model_path") if whole else None)
    others, replayed = check_replayed(stages, base_dir)
    wrong, given = check_given_policies(stages, base_dir, resolved.get("model_path") if whole else None)
    resolved |= teachers | replayed | given
    unfit, embedding = check_embedding_model(spec, base_dir)
    resolved |= embedding
    missing, resolved["datasets"] = check_data_sets(spec, base_dir, memo)
    overlaps = [] if missing else check_overlap(spec, base_dir, memo)
    faults += [*more, *others, *wrong, *unfit, *missing, *overlaps, *_check_compute(spec, stages, cluster)]
    return list(dict.fromkeys(faults)), resolved


def _check_suite_names(spec: JobSpec) -> list[Fault]:
    """A name stands for one domain in the score matrix, so two domains may not share it."""
    known: dict[str, Any] = {}
    found = []
    places = [
        (("stages", index, "domains", part), weighted.name, weighted.domain)
        for index, stage in enumerate(spec.stages)
        for part, weighted in enumerate(stage.domains or ())
    ]
    places += [(("stages", index), stage.name, stage.domain) for index, stage in enumerate(spec.stages) if stage.domain is not None]
    suites = spec.evaluation.domains if spec.evaluation.domains != "all_stages" else ()
    places += [(("evaluation", "domains", index), suite.name, suite.domain) for index, suite in enumerate(suites)]
    for where, name, domain in places:
        if known.setdefault(name, domain) != domain:
            found.append(Fault(pointer((*where, "name")), f"{name!r} names two different domains; each needs its own name", "duplicate_name"))
    return found


def _check_compute(spec: JobSpec, stages: tuple[ResolvedStage, ...], cluster: dict[str, float] | None) -> list[Fault]:
    """What the roles take against what the cluster has, and whether the transfer backend suits the device."""
    compute = spec.compute
    have = None if cluster is None else {name.removesuffix("s").upper(): float(amount) for name, amount in cluster.items()}
    found = []
    try:
        teachers = int(any(stage.composition.needs_scorer for stage in stages))
        assumed = have or {"CPU": 1e9, "GPU": 0.0 if compute.device != "cuda" else 1e9}
        layout = plan_layout(compute.device, rollout_workers=compute.rollout_workers, learners=compute.learners, teachers=teachers, cluster=assumed)
    except ResourceError as error:
        return [Fault("/compute", error.message, "insufficient_resources")]
    wanted = compute.weight_transfer
    if layout.device == "cpu" and wanted in ("nccl", "ipc") and (have is not None or compute.device == "cpu"):
        found.append(Fault("/compute/weight_transfer", f"{show(wanted)} needs GPUs and the job runs on CPUs; allowed: 'auto', 'shared_memory'", "wrong_backend"))
    if layout.device == "cuda" and have is not None and wanted == "ipc" and layout.rollout_gpus >= 1:
        found.append(Fault("/compute/weight_transfer", "'ipc' needs engine and learner on one shared GPU; allowed here: 'auto', 'nccl', 'shared_memory'", "wrong_backend"))
    return found


