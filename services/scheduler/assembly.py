"""Builds the lead of a job from its parts, inside the lead's process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cluster.spec.job import JobSpec, evaluation_domains
from rollout.chat import ChatFormat
from rollout.domains import build_domain
from rollout.engines.base import EngineSampling
from rollout.pool import RolloutPool
from rollout.verifiers.pool import VerifierPool
from services.evaluation.evaluator import Evaluator
from services.scheduler.evaluations import Evaluations
from services.scheduler.lead import Lead, LeadParts
from services.scheduler.model_source import embedding_folder
from services.scheduler.response_watch import ResponseWatch
from services.scheduler.side_watch import SideWatch
from services.teacher.canary import TeacherCanary
from services.teacher.group import TeacherGroup
from services.tracking.log import RunLog
from services.weights.parity import ParityProbe

if TYPE_CHECKING:
    from services.scheduler.train_function import JobRun

VERIFIER_PROCESSES = 1
VERIFIER_DEADLINE_S = 10.0
PROBE_PROMPTS = 4
PROBE_TOKENS = 16


def build_lead(run: JobRun) -> Lead:
    """Pool, teacher, verifiers, log and evaluations around the job's spec."""
    job, config = run.job, run.config
    chat = ChatFormat(config["model_folder"])
    pool = RolloutPool(config["workers"])
    verifiers = VerifierPool(VERIFIER_PROCESSES, VERIFIER_DEADLINE_S)
    log = RunLog(Path(config["run_dir"]))
    suites = evaluation_domains(job)
    seed = evaluation_seed(job)
    domains = {suite.name: build_domain(suite.domain, name=suite.name, seed=seed) for suite in suites}
    longest = max(stage.sampling.max_tokens for stage in run.stages)
    evaluator = Evaluator(
        pool,
        verifiers,
        chat,
        domains,
        {suite.name: suite.problems for suite in suites},
        EngineSampling(
            temperature=job.evaluation.temperature, top_p=job.evaluation.top_p, max_tokens=job.evaluation.max_tokens or longest
        ),
        seed,
        max_prompt_tokens=max(stage.max_prompt_tokens for stage in run.stages),
        samples_per_problem=job.evaluation.samples_per_problem,
    )
    probe_domain = next(iter(domains.values()))
    prompts = [chat.prompt_token_ids(probe_domain.problem("evaluation", index).messages) for index in range(PROBE_PROMPTS)]
    parts = LeadParts(
        link=run.link,
        log=log,
        pool=pool,
        teacher=TeacherGroup(config["teachers"]) if config["teachers"] else None,
        verifiers=verifiers,
        chat=chat,
        probe=ParityProbe(config["workers"], prompts, max_tokens=min(PROBE_TOKENS, longest)),
        canary=TeacherCanary(),
        evaluations=Evaluations(evaluator, run.link, log, measured_on=f"{config['device']}/{config['dtype']}"),
        side_watch=SideWatch(
            run.link,
            log,
            chat,
            base_folder=Path(config["model_folder"]),
            run_dir=Path(config["run_dir"]),
            stages=run.stages,
            when=job.evaluation.parameter_drift,
            responses=_response_watch(run, log, evaluator),
        ),
    )
    known = (config["resolved"].get("datasets") or {}).values()
    hashes = {item["path"]: item["sha256"] for item in known if item.get("path") and item.get("sha256")}
    return Lead(
        job,
        parts,
        run.progress,
        num_ranks=run.ranks.world_size,
        data_files=hashes,
        run_dir=Path(config["run_dir"]),
        recorded=config["resolved"].get("replayed"),
    )


def evaluation_seed(job: JobSpec) -> int:
    """Of the problems that are evaluated and of their sampling: jobs of several seeds may be scored on the same problems."""
    return job.seed if job.evaluation.seed is None else job.evaluation.seed


def _response_watch(run: JobRun, log: RunLog, evaluator: Evaluator) -> ResponseWatch:
    """On the learner's device and in its dtype; a sentence-embedding model runs on the processor."""
    import torch

    config = run.config
    model = {
        "dtype": getattr(torch, config["dtype"]),
        "device": config["device"],
        "embedding_folder": embedding_folder(run.job.evaluation.response_drift.embedding, config["resolved"]),
    }
    base, run_dir = Path(config["model_folder"]), Path(config["run_dir"])
    return ResponseWatch(log, evaluator, job=run.job, base_folder=base, run_dir=run_dir, model=model)
