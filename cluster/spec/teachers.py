"""Which weights the teacher has. What it may read is the context's business, and a reference is never a teacher.

r is always the policy's share: teacher <- (1 - r) teacher + r policy. Where a teacher is anchored at the start of a stage
is said by the stage's ``boundary.teacher``: kept, at the current policy (re_anchor), or at the base model (reset).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.spec.base import Fraction, Name, Spec


class ModelFolder(Spec):
    """A local folder, or a Hugging Face id with a revision."""

    path: str | None = Field(None, description="a folder with config.json, tokenizer and safetensors")
    id: str | None = Field(None, description="a Hugging Face model id")
    revision: str | None = Field(None, description="commit, tag or branch of the id; pinned to a commit at submission")

    @model_validator(mode="after")
    def _source(self) -> ModelFolder:
        if (self.path is None) == (self.id is None):
            raise ValueError("exactly one of path and id must be given")
        if self.path is not None and self.revision is not None:
            raise ValueError("revision goes with id, not with path")
        return self


class InitialBlend(Spec):
    """Where a teacher begins instead: share * checkpoint + (1 - share) * anchor, weight by weight (2607.01763, code)."""

    path: str = Field(description="a model folder of the policy's architecture")
    share: Fraction = Field(1.0, description="the checkpoint's share")


class FrozenTeacher(Spec):
    """The policy as it was when the teacher was last anchored."""

    kind: Literal["frozen"] = "frozen"
    initial: InitialBlend | None = None


class LiveTeacher(Spec):
    """The current policy's weights; only useful with a context that the policy does not see."""

    kind: Literal["live"] = "live"


class EmaTeacher(Spec):
    """teacher <- (1 - r) teacher + r policy, in fp32 (SDPO, 2601.20802, A.2)."""

    kind: Literal["ema"] = "ema"
    update_rate: float = Field(0.05, gt=0.0, le=1.0, description="r, the policy's share; 0.01 to 0.05 in the papers")
    every: Literal["rollout_batch", "optimizer_step"] = Field(
        "rollout_batch", description="once per rollout batch, or with the policy of every optimizer step of it (updates_per_batch)"
    )
    initial: InitialBlend | None = None


class RestartAndFreezeTeacher(Spec):
    """teacher <- (1 - gamma) teacher + gamma policy in one jump every ``period`` steps, frozen in between (2607.01763)."""

    kind: Literal["restart_and_freeze"] = "restart_and_freeze"
    period: int = Field(50, ge=1, description="steps of the stage between two jumps")
    gamma: float = Field(0.4, gt=0.0, le=1.0, description="the policy's share of a jump")
    initial: InitialBlend | None = None

    @property
    def equivalent_update_rate(self) -> float:
        """The EMA rate whose weight of the old teacher after ``period`` steps is the same: 1 - (1 - gamma)^(1 / period)."""
        return 1.0 - (1.0 - self.gamma) ** (1.0 / self.period)


class TrustRegionTeacher(Spec):
    """q ~ anchor^(1 - mix) policy^mix, both on the teacher's prompt (SDPO, 2601.20802, B.2); softmax of the mixed logits."""

    kind: Literal["trust_region"] = "trust_region"
    mix: Fraction = Field(0.01, description="alpha, the policy's exponent: 0 is a frozen teacher, 1 a live one")


class ExternalTeacher(ModelFolder):
    """Another checkpoint, frozen; its vocabulary must be the policy's (methods: OPD, 2603.25562)."""

    kind: Literal["external"] = "external"


class AnchorSource(Spec):
    """Frozen weights: the policy as it was when the teacher was last anchored."""

    kind: Literal["anchor"] = "anchor"


class PolicySource(Spec):
    """The current policy's weights."""

    kind: Literal["policy"] = "policy"


MixSource = Annotated[AnchorSource | PolicySource | ExternalTeacher, Field(discriminator="kind")]


class MixTeacher(Spec):
    """q ~ first^(1 - weight) second^weight, both on the teacher's prompt; above 1 it extrapolates (G-OPD, 2602.12125)."""

    kind: Literal["mix"] = "mix"
    first: MixSource = AnchorSource()
    second: MixSource = PolicySource()
    weight: float = Field(description="the second's exponent; 0 to 1, or above 1 where the second is external", ge=0.0, le=4.0)


SingleTeacher = Annotated[
    FrozenTeacher | LiveTeacher | EmaTeacher | RestartAndFreezeTeacher | TrustRegionTeacher | ExternalTeacher | MixTeacher,
    Field(discriminator="kind"),
]


class PerDomainTeacher(Spec):
    """A teacher for each domain of a stage that mixes domains; problems are routed by their domain's name."""

    kind: Literal["per_domain"] = "per_domain"
    teachers: dict[Name, SingleTeacher] = Field(min_length=1)


TeacherSpec = Annotated[
    FrozenTeacher
    | LiveTeacher
    | EmaTeacher
    | RestartAndFreezeTeacher
    | TrustRegionTeacher
    | ExternalTeacher
    | MixTeacher
    | PerDomainTeacher,
    Field(discriminator="kind"),
]


def single_teachers(teacher: TeacherSpec) -> tuple[SingleTeacher, ...]:
    """The teacher itself, or those of its domains."""
    return tuple(teacher.teachers.values()) if isinstance(teacher, PerDomainTeacher) else (teacher,)


def external_teachers(teacher: TeacherSpec | None) -> tuple[ExternalTeacher, ...]:
    """Every other checkpoint that a teacher reads, those of domains and of mixes included."""
    singles = () if teacher is None else single_teachers(teacher)
    sources = [source for one in singles for source in ((one.first, one.second) if isinstance(one, MixTeacher) else (one,))]
    return tuple(source for source in sources if isinstance(source, ExternalTeacher))


def external_key(teacher: ModelFolder) -> str:
    """What an external teacher goes by: its path, or id@revision."""
    return teacher.path if teacher.path is not None else f"{teacher.id}@{teacher.revision}"
