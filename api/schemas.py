"""The shapes of the answers; what OpenAPI shows. Views of store records, made in ``api/views.py``.

Times are RFC 3339 in UTC. Every list is a page: ``data`` in order, ``has_more``, and ``last_id`` to hand back as ``after``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, TypeVar, get_args

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

JobStatus = Literal["queued", "starting", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]
JOB_STATUSES: tuple[str, ...] = get_args(JobStatus)
TERMINAL: frozenset[str] = frozenset({"succeeded", "failed", "cancelled"})


class View(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(from_attributes=True)


class Fault(View):
    """One thing that is wrong with a request."""

    pointer: str = Field(description="JSON pointer (RFC 6901) to the field in the body; /query/..., /path/... or /header/... otherwise", examples=["/stages/1/method/recipe"])
    detail: str = Field(description="what is wrong and what is allowed")
    code: str = Field(description="machine-readable kind of the fault", examples=["extra_forbidden"])


class Problem(View):
    """An RFC 9457 problem document."""

    type: str = Field(description="address of an explanation of this kind of problem")
    title: str
    status: int
    detail: str
    instance: str = Field(description="the path that was asked for")
    code: str = Field(description="the kind as a word; branch on this")
    request_id: str = Field(description="also in the X-Request-Id header and in the service's log")
    errors: list[Fault] = Field([], description="every fault that was found")
    job_status: str | None = Field(None, description="with illegal_transition: the job's state")
    allowed: list[str] | None = Field(None, description="with illegal_transition: what the job accepts now")


class StageProgress(View):
    """Where one stage stands."""

    index: int
    name: str
    status: str = Field(description="queued, running, succeeded, failed, cancelled or skipped")
    step: int = Field(description="training steps done")
    total_steps: int
    message: str | None = Field(None, description="the last step's figures, for people")
    mlflow_url: str | None = Field(None, description="the stage's run in MLflow")


class Progress(View):
    stages_done: int
    stages_total: int
    steps_done: int
    steps_total: int


class Links(View):
    """Where to go from here."""

    self: str
    events: str
    stream: str
    evaluations: str
    report: str
    mlflow: str | None = Field(None, description="the job's run in MLflow, once there is one")


class Job(View):
    """A continual post-training job. ``version`` grows with every change and is the ETag."""

    id: str = Field(examples=["job_0197f3a0c9d17c0e8f0a3b1c2d4e5f60"])
    object: Literal["job"] = "job"
    name: str
    status: JobStatus
    desired_status: str | None = Field(description="what was asked for; differs from status while a cancel or pause is under way")
    reason: str | None = Field(description="why the job is in this state, as a word", examples=["driver_lost"])
    message: str | None = Field(description="the same for people")
    version: int
    seed: int
    labels: dict[str, str]
    spec_hash: str | None = Field(description="sha256 of the spec with all defaults")
    stages: list[StageProgress]
    progress: Progress
    cancel_mode: str | None = Field(None, description="with a cancel: graceful or now")
    links: Links
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class Event(View):
    """One line of a job's history. ``seq`` counts from 1 within the job, without gaps."""

    seq: int
    id: str
    type: str = Field(description="job.status, stage.status, checkpoint.saved, evaluation.completed, warning, ...")
    level: str = "info"
    stage: str | None = None
    message: str | None = None
    data: dict[str, Any] = {}
    created_at: datetime


class Checkpoint(View):
    """A saved state of a job: one to resume from, or the state at the end of a stage."""

    id: str
    kind: str = Field(description="resume, or stage: the end of a stage, kept for good")
    stage: str = Field(description="the stage during or after which it was made")
    stage_index: int
    step: int = Field(description="training steps of the stage that were done")
    global_step: int = Field(description="training steps of the job that were done")
    policy_version: int | None = None
    path: str = Field(description="folder on the service's storage")
    policy_path: str | None = Field(None, description="with kind stage: the Hugging Face folder, loadable with from_pretrained")
    manifest_sha256: str | None = None
    created_at: datetime | None = None


class Evaluation(View):
    """The score of one domain at one point of the job."""

    row: int = Field(description="row of the score matrix: 0 is the base model, i + 1 is after stage i")
    at: str = Field(description="boundary: before the first stage or after one, in the matrix; during: inside a stage")
    stage: str | None = Field(description="the stage that was or is being trained; empty for the base model")
    stage_index: int | None
    step: int | None
    domain: str
    num_problems: int
    mean: float = Field(description="mean score over the problems, 0 to 1")
    truncation_rate: float | None = Field(None, description="share of completions that were cut at max_tokens")
    mean_tokens: float | None = Field(None, description="mean length of the completions")
    created_at: datetime | None = None


class Measurement(Evaluation):
    """One of the measurements that a score matrix was made of, or that was left out of it."""

    comparable: bool = Field(description="false: left out, measured with other problems, seeds, sampling or verifier, or after a row that was")


class Evaluations(View):
    """The score matrix of a job, the retention figures, and the rows they come from."""

    object: Literal["evaluations"] = "evaluations"
    domains: list[str]
    rows: list[str] = Field(description="'base', then the names of the stages that were evaluated")
    score_matrix: list[list[float | None]] = Field(description="score_matrix[row][domain]; null where not measured; all on the same problems, seeds, sampling and verifier")
    truncation_rate: list[list[float | None]] = Field(description="of the same cells: share of completions that were cut at max_tokens")
    notes: list[str] = Field(description="which rows and scores were left out because they do not compare, and which are taken as comparable")
    retention: dict[str, Any] | None = Field(description="stage gains, changes of earlier domains, average score, backward transfer, forgetting, forward transfer, with 95 % intervals; null before the first stage was evaluated")
    retention_note: str | None = Field(None, description="why there are no retention figures, where that is not for want of stages")
    data: list[Measurement] = Field(description="every measurement, the ones during stages and those that were left out included")


class Stage(StageProgress):
    """One stage with its resolved method and its numbers."""

    resolved: dict[str, Any] = Field(description="every default filled in and the recipe resolved into its composition")
    evaluations: list[Evaluation] = []
    checkpoints: list[Checkpoint] = []


class MetricPoint(View):
    """The value of one metric at one step; after a restart the last value of a step counts."""

    key: str
    stage: str | None
    step: int = Field(description="of the stage")
    global_step: int = Field(description="of the job")
    value: float | None = Field(description="null where the value was not finite")
    time: datetime = Field(validation_alias=AliasChoices("time", "time_ms", "timestamp_ms"))


class Metrics(View):
    object: Literal["metrics"] = "metrics"
    keys: list[str] = Field(description="every key that has points in the answer")
    data: list[MetricPoint]


class Resources(View):
    """What a job takes and what there is."""

    needed: dict[str, float]
    cluster: dict[str, float] | None = Field(description="null where no cluster has reported yet")
    device: str
    fits: bool | None


class Plan(View):
    """What a submission would become; nothing is stored."""

    object: Literal["plan"] = "plan"
    spec: dict[str, Any] = Field(description="the job file with every default filled in")
    spec_hash: str = Field(description="sha256 of that")
    stages: list[dict[str, Any]] = Field(description="each stage with its recipe resolved into a composition")
    evaluation_domains: list[dict[str, Any]] = Field(description="every suite that will be scored, before the first stage and after each")
    total_steps: int
    total_rollouts: int = Field(description="completions trained on, at most")
    evaluation_problems: int = Field(description="problems scored over the whole job")
    resources: Resources
    resolved: dict[str, Any] = Field(description="what the names in the job file were found to be: hashes, vocabulary, rows")
    notes: list[str] = Field([], description="what the stages' methods stand for and need, such as a reference or one more forward pass")
    warnings: list[str]


class CancelRequest(BaseModel):
    """How to cancel."""

    model_config = ConfigDict(extra="forbid")
    mode: Literal["graceful", "now"] = Field("graceful", description="graceful: at the next step, with a checkpoint; now: at once")


class StudyMember(View):
    """One run of a study: an arm in one order with one seed."""

    position: int = Field(description="place in the study's queue, from 0")
    arm: str
    order: str
    seed: int
    digest: str = Field(description="sha256 of the member's job file; a record with the same digest may stand for it")
    status: JobStatus
    job_id: str | None = Field(description="the newest job of this member; null where a record stands for it")
    reason: str | None = None
    message: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    seconds: float | None = Field(None, description="wall clock from start to end")
    steps_done: int
    steps_total: int
    recorded: bool = Field(description="whether a record that came with the submission stands for this member")


class Study(View):
    """Arms x orders x seeds of one base job. Its status follows from its members'."""

    id: str = Field(examples=["study_0197f3a0c9d17c0e8f0a3b1c2d4e5f60"])
    object: Literal["study"] = "study"
    name: str
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    counts: dict[str, int] = Field(description="members by status")
    num_members: int
    labels: dict[str, str]
    spec_hash: str
    links: dict[str, str | None] = Field(description="self, records, report, and mlflow once there is a run")
    members: list[StudyMember] | None = Field(None, description="in the study's order; left out in lists and after a request")
    unmatched_records: list[str] | None = Field(None, description="after a submission: records that belong to no member, or were made with another base model, and were not kept")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class StudyPlan(View):
    """What a study would become; nothing is stored."""

    object: Literal["study_plan"] = "study_plan"
    name: str
    spec_hash: str
    num_members: int
    num_recorded: int = Field(description="members for which a record stands; they would not run")
    total_steps: int = Field(description="training steps of all members that would run")
    members: list[dict[str, Any]] = Field(description="position, arm, order, seed, digest, recorded")
    unmatched_records: list[str]
    warnings: list[str]


class StudyRecords(View):
    """Records of the members that have ended."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]


class Capabilities(View):
    """What this installation can do."""

    object: Literal["capabilities"] = "capabilities"
    versions: dict[str, str]
    recipes: dict[str, dict[str, Any]] = Field(description="JSON Schema of the parameters of each recipe")
    domains: dict[str, dict[str, Any]] = Field(description="JSON Schema of each domain")
    verifiers: list[str]
    teachers: list[str]
    contexts: list[str]
    objectives: list[str]
    supports: list[str]
    masks: list[str]
    experiences: list[str]
    limits: dict[str, Any]
    cluster: dict[str, float] | None = Field(description="total resources of the cluster; null where none has reported yet")


class Health(View):
    status: Literal["ok", "degraded", "unavailable"]
    checks: dict[str, str] = {}


class Version(View):
    name: Literal["holdfast"] = "holdfast"
    version: str
    api: Literal["v1"] = "v1"
    spec_version: int = 1


class ProblemMeaning(View):
    code: str
    status: int
    title: str
    meaning: str


Item = TypeVar("Item")


class Page(View, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None = None
    last_id: str | None = Field(None, description="hand this back as 'after' to read on")
    has_more: bool
