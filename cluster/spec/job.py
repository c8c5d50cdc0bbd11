"""The job file: a base model and an ordered list of stages."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.spec.base import Count, Name, Spec, cannot_learn
from cluster.spec.composition import Composition, NoMethod
from cluster.spec.contexts import TEMPLATE_TOKENS, Critique, NoContext, UserTemplate
from cluster.spec.domains import DomainSpec, EvaluationDomain, WeightedDomain
from cluster.spec.recipes import MethodSpec, resolve
from cluster.spec.stage_refusals import stage_refusals
from cluster.spec.teachers import ModelFolder

MAX_SAMPLES_PER_PROBLEM = 1024
GIVEN = "given"
"""Stands where other stages have their recipe's name."""
ONE_DOMAIN = "a stage has exactly one of domain and domains"
ONE_SOURCE = "a stage has exactly one of method and policy"
OF_TRAINING = ("steps", "problems_per_step", "rollouts_per_problem", "updates_per_batch", "optimizer", "boundary", "replay")
"""Fields that say how a stage trains, which a given one does not do."""


class ModelSpec(ModelFolder):
    """The base model: a local folder, or a Hugging Face id with a revision."""

    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="of the engine and of the forward pass; auto: float32 on CPU, bfloat16 on GPU")


class SamplingSpec(Spec):
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    top_k: Count | None = Field(None, description="sample from the k most likely ids only")
    max_tokens: Count = Field(256, description="longest completion")

    @property
    def is_truncated(self) -> bool:
        """Whether the engine's recorded probabilities are renormalised over a part of the vocabulary."""
        return self.top_p < 1.0 or self.top_k is not None


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
    reference: Literal["keep", "re_anchor", "reset"] = Field("reset", description="the same for the reference of a KL penalty, which is never the teacher")
    optimizer: Literal["keep", "reset"] = "reset"


class ReplaySpec(Spec):
    """A share of the stage's problems comes from earlier stages' domains, with their own verifiers."""

    share: float = Field(0.1, gt=0.0, lt=1.0)
    stages: tuple[Name, ...] | None = Field(None, min_length=1, description="earlier stages; all of them where null")


class Defaults(Spec):
    """Values for stages that do not say otherwise."""

    steps: Count = 100
    problems_per_step: Count = 16
    rollouts_per_problem: Count = 8
    updates_per_batch: Count = Field(1, description="optimizer steps that a batch of rollouts is dealt out to")
    sampling: SamplingSpec = SamplingSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    max_prompt_tokens: Count = Field(1024, description="longest policy prompt; a longer one is refused, not cut")
    boundary: BoundarySpec = BoundarySpec()


class StageSpec(Spec):
    """One stage: a domain or a weighted mixture, a method, a budget. Unset budget fields come from ``defaults``.

    A stage with ``policy`` in place of ``method`` is given: it takes the weights that another trainer wrote, trains nothing, and is
    measured as every other. Its domains say what those weights were trained on; its steps are 0.
    """

    name: Name
    domain: DomainSpec | None = None
    domains: tuple[WeightedDomain, ...] | None = Field(None, min_length=1)
    method: MethodSpec | None = None
    policy: ModelFolder | None = Field(
        None, description="in place of method: a checkpoint of the base's architecture and vocabulary that another trainer wrote, measured as the policy after this stage"
    )
    steps: Count | None = None
    problems_per_step: Count | None = None
    rollouts_per_problem: Count | None = None
    updates_per_batch: Count | None = None
    sampling: SamplingSpec | None = None
    optimizer: OptimizerSpec | None = None
    max_prompt_tokens: Count | None = None
    boundary: BoundarySpec | None = None
    replay: ReplaySpec | None = None

    @model_validator(mode="after")
    def _domain(self) -> StageSpec:
        if (self.domain is None) == (self.domains is None):
            raise ValueError(ONE_DOMAIN)
        return self

    @model_validator(mode="after")
    def _source(self) -> StageSpec:
        if (self.method is None) == (self.policy is None):
            raise ValueError(ONE_SOURCE)
        training = [name for name in OF_TRAINING if getattr(self, name) is not None] if self.policy is not None else []
        if training:
            raise ValueError(f"a stage with policy trains nothing, so it has no {', '.join(training)}; remove what it has, or give a method in place of policy")
        return self


class ResponseDriftSpec(Spec):
    """How far answers to fixed probe prompts have moved: the first evaluation problems of every domain."""

    when: Literal["evaluations", "stage_ends", "never"] = Field(
        "evaluations", description="evaluations: the stage's own domains during a stage, and every domain at its end"
    )
    problems: int = Field(64, ge=2, description="probe prompts per domain")
    embedding: ModelFolder | None = Field(None, description="a sentence-embedding model's folder; otherwise the base model's own pooled states")


class EvaluationSpec(Spec):
    problems: Count = Field(512, description="problems per domain, the same ones every time")
    domains: Literal["all_stages"] | tuple[EvaluationDomain, ...] = Field("all_stages", description="all_stages, or a list of suites scored besides the stages' domains")
    every_steps: Count | None = Field(None, description="also score the stage's own domains during a stage")
    seed: int | None = Field(None, ge=0, lt=2**31, description="which problems are drawn and how they are sampled; the job's seed where null")
    temperature: float = Field(1.0, gt=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: Count | None = Field(None, description="longest completion; otherwise the largest of the stages")
    samples_per_problem: Count = Field(1, le=MAX_SAMPLES_PER_PROBLEM, description="completions of each problem; its score is their mean")
    pass_at: tuple[Count, ...] = Field((), description="k of pass@k, at most samples_per_problem each")
    parameter_drift: Literal["evaluations", "stage_ends", "never"] = Field(
        "evaluations", description="when the weights are compared with the base model's and the stage's first: a few matrix products per weight"
    )

    response_drift: ResponseDriftSpec = ResponseDriftSpec()

    @model_validator(mode="after")
    def _pass_at(self) -> EvaluationSpec:
        for k in self.pass_at:
            if k > self.samples_per_problem:
                raise ValueError(f"pass_at {k} is above samples_per_problem {self.samples_per_problem}; pass@k needs k samples or more")
            if self.pass_at.count(k) > 1:
                raise ValueError(f"pass_at has {k} more than once")
        return self


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
    """``given`` where the stage has no method."""
    domains: tuple[WeightedDomain, ...]
    policy: ModelFolder | None = None
    """Of a given stage: the weights that it takes. Its composition has no term and its steps are 0."""
    composition: Composition
    steps: int
    problems_per_step: int
    rollouts_per_problem: int
    updates_per_batch: int
    sampling: SamplingSpec
    optimizer: OptimizerSpec
    max_prompt_tokens: int
    boundary: BoundarySpec

    @model_validator(mode="after")
    def _can_learn(self) -> ResolvedStage:
        reasons = stage_refusals(self) if self.policy is None else ()
        if reasons:
            raise cannot_learn(reasons)
        return self

    @property
    def needs_policy_pass(self) -> bool:
        """Whether the learner scores a batch before it is packed: for a mask by the policy's entropy, or because a later
        update of the same batch must know the policy before the first one and the rollout's own record is not used as it."""
        composition = self.composition
        several = self.updates_per_batch > 1 and any(
            term.objective.kind == "policy_gradient" and (term.importance_cap is not None or self.sampling.is_truncated)
            for term in composition.terms
        )
        return composition.needs_policy_entropy or several


def resolve_stage(job: JobSpec, index: int) -> ResolvedStage:
    stage, defaults = job.stages[index], job.defaults
    domains = with_replay(job, index)
    filled: dict[str, Any] = {
        field: getattr(stage, field) if getattr(stage, field) is not None else getattr(defaults, field)
        for field in Defaults.model_fields
    }
    if stage.policy is not None:
        filled["steps"] = 0
        return ResolvedStage(index=index, name=stage.name, recipe=GIVEN, domains=domains, policy=stage.policy, composition=NoMethod(), **filled)
    return ResolvedStage(
        index=index, name=stage.name, recipe=stage.method.recipe, domains=domains, composition=resolve(stage.method), **filled
    )


def own_domains(stage: StageSpec) -> tuple[WeightedDomain, ...]:
    return stage.domains or (WeightedDomain(name=stage.name, domain=stage.domain),)


def with_replay(job: JobSpec, index: int) -> tuple[WeightedDomain, ...]:
    """The stage's own domains, and with replay those of earlier stages, which share the replayed part evenly."""
    stage = job.stages[index]
    own = own_domains(stage)
    if stage.replay is None:
        return own
    wanted = stage.replay.stages
    earlier = {part.name: part for past in job.stages[:index] if wanted is None or past.name in wanted for part in own_domains(past)}
    for part in own:
        earlier.pop(part.name, None)
    if not earlier:
        return own
    total = sum(part.weight for part in own)
    each = total * stage.replay.share / (1.0 - stage.replay.share) / len(earlier)
    return (*own, *(part.model_copy(update={"weight": each}) for part in earlier.values()))


def longest_sequence(job: JobSpec) -> int:
    """Tokens that an engine must be able to hold: every stage's prompts are also evaluated with the longest completion, and
    some contexts are written by the policy itself."""
    stages = job.resolved_stages()
    completion = max(*(stage.sampling.max_tokens for stage in stages), job.evaluation.max_tokens or 1)
    prompt = max(stage.max_prompt_tokens for stage in stages)
    return max(prompt + completion, *(stage.max_prompt_tokens + context_tokens(stage, generated=True) for stage in stages))


def context_tokens(stage: ResolvedStage, *, generated: bool = False) -> int:
    """Tokens that a stage's contexts may add to a prompt; ``generated``: with what the policy writes for them, else 0 where it
    writes nothing."""
    composition = stage.composition
    longest = 0
    for context in (composition.context, *composition.domain_contexts.values()):
        if isinstance(context, NoContext):
            continue
        critique = context.max_tokens if isinstance(context, Critique) else 0
        reasoning = context.reason_first.max_tokens if context.reason_first is not None else 0
        if generated and not critique and not reasoning:
            continue
        words = len(context.template.text) if isinstance(context.template, UserTemplate) else 0  # a character is a token at most
        longest = max(longest, context.max_context_tokens + TEMPLATE_TOKENS + words + (max(critique, reasoning) if generated else 0))
    return longest


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
