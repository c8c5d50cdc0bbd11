"""The job file: a base model and an ordered list of stages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.spec.base import Count, Name, Spec
from cluster.spec.composition import Composition
from cluster.spec.domains import DomainSpec, EvaluationDomain, WeightedDomain
from cluster.spec.recipes import MethodSpec, resolve


class ModelSpec(Spec):
    """The base model: a local folder, or a Hugging Face id with a revision."""

    path: str | None = Field(None, description="a folder with config.json, tokenizer and safetensors")
    id: str | None = Field(None, description="a Hugging Face model id")
    revision: str | None = Field(None, description="commit, tag or branch of the id; pinned to a commit at submission")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the engine and of the forward pass; auto: float32 on CPU, bfloat16 on GPU")

    @model_validator(mode="after")
    def _source(self) -> ModelSpec:
        if (self.path is None) == (self.id is None):
            raise ValueError("exactly one of path and id must be given")
        if self.path is not None and self.revision is not None:
            raise ValueError("revision goes with id, not with path")
        return self


class SamplingSpec(Spec):
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: Count = Field(256, description="longest completion")


class OptimizerSpec(Spec):
    """AdamW with a constant rate after a linear warm-up."""

    lr: float = Field(1e-5, gt=0.0, lt=1.0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0)
    warmup_steps: int = Field(0, ge=0)
    gradient_clip: float = Field(1.0, gt=0.0, description="largest global L2 norm of the gradient")


class BoundarySpec(Spec):
    """What is carried into this stage from the one before."""

    teacher: Literal["keep", "re_anchor", "reset"] = Field("re_anchor", description="keep its weights, set them to the current policy, or to the base model")
    optimizer: Literal["keep", "reset"] = "reset"


class Defaults(Spec):
    """Values for stages that do not say otherwise."""

    steps: Count = 100
    problems_per_step: Count = 16
    rollouts_per_problem: Count = 8
    sampling: SamplingSpec = SamplingSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    max_prompt_tokens: Count = Field(1024, description="longest policy prompt; a longer one is refused, not cut")
    boundary: BoundarySpec = BoundarySpec()


class StageSpec(Spec):
    """One stage: a domain or a weighted mixture, a method, a budget. Unset budget fields come from ``defaults``."""

    name: Name
    domain: DomainSpec | None = None
    domains: tuple[WeightedDomain, ...] | None = Field(None, min_length=1)
    method: MethodSpec
    steps: Count | None = None
    problems_per_step: Count | None = None
    rollouts_per_problem: Count | None = None
    sampling: SamplingSpec | None = None
    optimizer: OptimizerSpec | None = None
    max_prompt_tokens: Count | None = None
    boundary: BoundarySpec | None = None

    @model_validator(mode="after")
    def _domain(self) -> StageSpec:
        if (self.domain is None) == (self.domains is None):
            raise ValueError("a stage has exactly one of domain and domains")
        return self


class EvaluationSpec(Spec):
    problems: Count = Field(512, description="problems per domain, the same ones every time")
    domains: Literal["all_stages"] | tuple[EvaluationDomain, ...] = Field("all_stages", description="all_stages, or a list of suites scored besides the stages' domains")
    every_steps: Count | None = Field(None, description="also score the stage's own domains during a stage")
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: Count | None = Field(None, description="longest completion; otherwise the largest of the stages")


class CheckpointSpec(Spec):
    every_steps: Count = Field(20, description="optimizer steps between two resumable checkpoints; at most this many are redone")
    keep: Count = Field(2, description="resumable checkpoints kept besides the stages' ends")


class ComputeSpec(Spec):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rollout_workers: Count = 1
    learners: Count = 1
    micro_batch_tokens: Count = Field(4096, description="token budget of one micro-batch, prompts included")
    weight_transfer: Literal["auto", "shared_memory", "nccl", "ipc"] = Field("auto", description="auto: shared_memory on CPU, nccl on GPUs, ipc where learner and engine share one GPU")
    wait_for_resources_s: float = Field(300.0, gt=0.0, description="how long an attempt may wait for the cluster to have room")


class JobSpec(Spec):
    """One continual post-training job."""

    version: Literal[1] = 1
    name: Name
    model: ModelSpec
    seed: int = Field(0, ge=0, lt=2**31)
    defaults: Defaults = Defaults()
    stages: tuple[StageSpec, ...] = Field(min_length=1, max_length=64)
    evaluation: EvaluationSpec = EvaluationSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    compute: ComputeSpec = ComputeSpec()
    labels: dict[str, str] = Field({}, max_length=32)

    @model_validator(mode="after")
    def _names(self) -> JobSpec:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"duplicate stage name {name!r}; every stage needs its own")
        return self

    def resolved_stages(self) -> tuple[ResolvedStage, ...]:
        return tuple(resolve_stage(self, index) for index in range(len(self.stages)))


class ResolvedStage(Spec):
    """A stage with every default filled in and its recipe resolved; what the training loop reads."""

    index: int
    name: Name
    recipe: str
    domains: tuple[WeightedDomain, ...]
    composition: Composition
    steps: int
    problems_per_step: int
    rollouts_per_problem: int
    sampling: SamplingSpec
    optimizer: OptimizerSpec
    max_prompt_tokens: int
    boundary: BoundarySpec


def resolve_stage(job: JobSpec, index: int) -> ResolvedStage:
    stage, defaults = job.stages[index], job.defaults
    domains = stage.domains or (WeightedDomain(name=stage.name, domain=stage.domain),)
    filled: dict[str, Any] = {
        field: getattr(stage, field) if getattr(stage, field) is not None else getattr(defaults, field)
        for field in Defaults.model_fields
    }
    return ResolvedStage(
        index=index, name=stage.name, recipe=stage.method.recipe, domains=domains, composition=resolve(stage.method), **filled
    )


def longest_sequence(job: JobSpec) -> int:
    """Tokens that an engine must be able to hold: every stage's prompts are also evaluated with the longest completion."""
    stages = job.resolved_stages()
    completion = max(*(stage.sampling.max_tokens for stage in stages), job.evaluation.max_tokens or 1)
    return max(stage.max_prompt_tokens for stage in stages) + completion


def evaluation_domains(job: JobSpec) -> tuple[EvaluationDomain, ...]:
    """Every suite that is scored, the stages' domains first and in order, each name once."""
    suites: dict[str, EvaluationDomain] = {}
    for stage in job.resolved_stages():
        for part in stage.domains:
            suites.setdefault(part.name, EvaluationDomain(name=part.name, domain=part.domain))
    if job.evaluation.domains != "all_stages":
        for suite in job.evaluation.domains:
            suites[suite.name] = suite
    return tuple(
        suite.model_copy(update={"problems": suite.problems or job.evaluation.problems}) for suite in suites.values()
    )
