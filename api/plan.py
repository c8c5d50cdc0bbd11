"""What a submission would become: the answer to ``?dry_run=true``. Pure."""

from __future__ import annotations

from api.method_words import stage_notes
from api.schemas import Plan, Resources
from api.submission import Submission
from cluster.errors import ResourceError
from cluster.placement import plan_layout
from cluster.spec.job import JobSpec, ResolvedStage, evaluation_domains
from cluster.spec.method_warnings import method_warnings

SMALL_EVALUATION = 100
"""Problems below which a paired interval on a score is wider than most effects: +-0.1 at a score of one half."""


def make_plan(submission: Submission, cluster: dict[str, float] | None) -> Plan:
    """The plan of an accepted submission."""
    job = submission.spec
    stages, suites = job.resolved_stages(), evaluation_domains(job)
    points = len(stages) + 1
    return Plan(
        spec=job.model_dump(mode="json"),
        spec_hash=submission.spec_hash,
        stages=[stage.model_dump(mode="json") for stage in stages],
        evaluation_domains=[suite.model_dump(mode="json") for suite in suites],
        total_steps=sum(stage.steps for stage in stages),
        total_rollouts=sum(_rollouts(stage) for stage in stages),
        evaluation_problems=points * sum(suite.problems or 0 for suite in suites),
        resources=plan_resources(job, stages, cluster),
        resolved=submission.resolved,
        notes=[note for stage in stages for note in stage_notes(stage)],
        warnings=warnings(job, stages, cluster),
    )


def plan_resources(job: JobSpec, stages: tuple[ResolvedStage, ...], cluster: dict[str, float] | None) -> Resources:
    """Needs against what the cluster reported; a cluster that has not reported is taken to have room."""
    compute = job.compute
    teachers = int(any(stage.composition.needs_scorer for stage in stages))
    counts = {"rollout_workers": compute.rollout_workers, "learners": compute.learners, "teachers": teachers}
    assumed = cluster or {"CPU": 1e9, "GPU": 1e9 if compute.device == "cuda" else 0.0}
    try:
        layout = plan_layout(compute.device, cluster=assumed, **counts)
    except ResourceError as error:
        needed = {error.details["resource"]: error.details["needed"]}
        return Resources(needed=needed, cluster=cluster, device=compute.device, fits=False)
    return Resources(needed=layout.total(), cluster=cluster, device=layout.device, fits=None if cluster is None else True)


def warnings(job: JobSpec, stages: tuple[ResolvedStage, ...], cluster: dict[str, float] | None) -> list[str]:
    """What is legal and still worth saying."""
    found = []
    if cluster is None:
        found.append("no cluster has reported its resources yet; whether the job fits was not checked")
    for suite in evaluation_domains(job):
        if (suite.problems or 0) < SMALL_EVALUATION:
            found.append(f"domain {suite.name!r} is scored on {suite.problems} problems: differences under about 0.1 will not be told from noise")
    for stage in (stage for stage in stages if stage.policy is None):
        where = f"stage {stage.name!r}"
        found += [f"{where}: {words}" for words in method_warnings(stage)]
        if stage.steps <= stage.optimizer.warmup_steps:
            found.append(f"{where} ends within its warm-up ({stage.steps} steps, {stage.optimizer.warmup_steps} of warm-up)")
        if stage.index == 0 and stage.boundary.optimizer == "keep":
            found.append(f"{where} is the first one: there is no optimizer state to keep")
    short = [stage.name for stage in stages if stage.policy is None and stage.steps < job.checkpoint.every_steps]
    if short:
        found.append(f"stages {', '.join(short)}: fewer steps than the checkpoint interval ({job.checkpoint.every_steps}), only the end is kept")
    return found


def _rollouts(stage: ResolvedStage) -> int:
    return stage.steps * stage.problems_per_step * stage.rollouts_per_problem
