"""What a job file asks for, held against the machine: model files, data sets, context lengths, GPUs.

Invariant: all faults are collected, none stops the search for the others, and nothing of the user's is executed: weights are
looked at by their headers only, and what could carry code is refused. No torch and no Ray here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.errors import ResourceError
from cluster.placement import plan_layout
from cluster.spec.composition import NoContext, PolicyGradient, SiblingSolution
from cluster.spec.job import JobSpec, ResolvedStage, longest_sequence
from services.jobs.data_sets import check_data_sets
from services.jobs.faults import Fault, pointer, show
from services.jobs.model_files import ModelFacts, check_model

MAX_ENGINE_SUPPORT = 1024
"""Most likely ids that the engine is allowed to return at each position; each one costs memory and time per token."""


def check_environment(spec: JobSpec, *, base_dir: Path, cluster: dict[str, float] | None) -> tuple[list[Fault], dict[str, Any]]:
    """Every fault of a job against this machine, and what the names in it were found to be.

    ``base_dir`` is where relative paths start; ``cluster`` is ``{"cpus": ..., "gpus": ...}``, or None where it is not known
    yet. The second value goes into the job's row: ``model_path``, ``model_sha256``, ``model_revision``, ``datasets``.
    """
    faults, facts, resolved = check_model(spec.model, Path(base_dir))
    stages = spec.resolved_stages()
    for stage in stages:
        faults += _check_method(stage)
        if facts is not None:
            faults += _check_lengths(spec, stage, facts) + _check_support(stage, facts)
    if facts is not None:
        faults += _check_evaluation_length(spec, stages, facts)
    faults += _check_suite_names(spec)
    more, resolved["datasets"] = check_data_sets(spec, Path(base_dir))
    faults += more + _check_compute(spec, stages, cluster)
    return faults, resolved


def _check_method(stage: ResolvedStage) -> list[Fault]:
    """Methods that cannot learn with this budget."""
    at, found = ("stages", stage.index), []
    composition, size = stage.composition, stage.rollouts_per_problem
    if size == 1 and any(isinstance(term.objective, PolicyGradient) for term in composition.terms):
        detail = "1 is not enough: a policy gradient compares the rollouts of a problem, and the advantage of a single one is always zero; at least 2"
        found.append(Fault(pointer((*at, "rollouts_per_problem")), detail, "cannot_learn"))
    context = composition.context
    if size == 1 and isinstance(context, SiblingSolution) and not context.own_success and context.feedback == "never":
        detail = "1 is not enough: sibling_solution shows another rollout of the same problem, and there is none; at least 2, or own_success, or feedback"
        found.append(Fault(pointer((*at, "rollouts_per_problem")), detail, "cannot_learn"))
    return found


def _check_lengths(spec: JobSpec, stage: ResolvedStage, facts: ModelFacts) -> list[Fault]:
    """The policy's prompt, the teacher's context and the completion must fit the model together."""
    context = stage.composition.context
    budget = 0 if isinstance(context, NoContext) else context.max_context_tokens
    needed = stage.max_prompt_tokens + budget + stage.sampling.max_tokens
    if facts.max_positions is None or needed <= facts.max_positions:
        return []
    parts = f"max_prompt_tokens {stage.max_prompt_tokens} + context {budget} + max_tokens {stage.sampling.max_tokens}"
    named = spec.stages[stage.index]
    where = ("stages", stage.index, "max_prompt_tokens") if named.max_prompt_tokens else ("stages", stage.index)
    if not named.max_prompt_tokens and not named.sampling:
        where = ("defaults", "max_prompt_tokens")
    detail = f"stage {stage.name!r} needs {parts} = {needed} tokens, the model has {facts.max_positions}"
    return [Fault(pointer(where), detail, "context_too_long")]


def _check_evaluation_length(spec: JobSpec, stages: tuple[ResolvedStage, ...], facts: ModelFacts) -> list[Fault]:
    needed = longest_sequence(spec)
    if facts.max_positions is None or needed <= facts.max_positions:
        return []
    longest = max(stage.max_prompt_tokens for stage in stages)
    detail = (
        f"{needed - longest} is too long: with max_prompt_tokens {longest} it makes {needed} tokens, the model has {facts.max_positions} "
        "(where unset it is the largest max_tokens of the stages)"
    )
    return [Fault("/evaluation/max_tokens", detail, "context_too_long")]


def _check_support(stage: ResolvedStage, facts: ModelFacts) -> list[Fault]:
    """K against the vocabulary and against what the engine may return."""
    support = stage.composition.top_k
    if support is None:
        return []
    at = pointer(("stages", stage.index, "method"))
    if facts.vocabulary is not None and support.k > facts.vocabulary:
        return [Fault(at, f"top_k {support.k} is larger than the model's vocabulary of {facts.vocabulary}", "top_k_too_large")]
    if support.support_from == "rollout" and support.k > MAX_ENGINE_SUPPORT:
        detail = f"top_k {support.k} is more than the engine returns ({MAX_ENGINE_SUPPORT}); use support_from: teacher, or a full support"
        return [Fault(at, detail, "top_k_too_large")]
    return []


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
        teachers = int(any(stage.composition.teacher is not None for stage in stages))
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


