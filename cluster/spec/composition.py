"""The parts that a method is made of. A recipe is a function that returns a ``Composition``.

Nothing in the training loop asks for a method's name: SDPO, SDFT, GRPO and every hybrid are rows of one table,
experience x teacher weights x privileged context x objective terms (support, clips, normaliser).
Equations: methods.md sections 1, 3 and 7 of the project's notes; the papers are named with each part.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cluster.spec.base import Count, Fraction, Name, Spec

# -- where the completions come from ---------------------------------------------------------------------------------


class PolicyExperience(Spec):
    """Completions sampled from the policy itself, through the rollout workers."""

    kind: Literal["policy"] = "policy"


class DemonstrationExperience(Spec):
    """The domain's own solutions as completions (off-policy): supervised fine-tuning."""

    kind: Literal["demonstrations"] = "demonstrations"


ExperienceSpec = Annotated[PolicyExperience | DemonstrationExperience, Field(discriminator="kind")]

# -- teacher weights -------------------------------------------------------------------------------------------------


class FrozenTeacher(Spec):
    """The policy as it was when the teacher was last anchored."""

    kind: Literal["frozen"] = "frozen"


class LiveTeacher(Spec):
    """The current policy's weights; only useful with a context that the policy does not see."""

    kind: Literal["live"] = "live"


class EmaTeacher(Spec):
    """teacher <- (1 - r) teacher + r policy, in fp32, once per rollout batch (SDPO, 2601.20802, A.2)."""

    kind: Literal["ema"] = "ema"
    update_rate: float = Field(0.05, gt=0.0, le=1.0, description="r, the policy's share; 0.01 to 0.05 in the papers")


TeacherSpec = Annotated[FrozenTeacher | LiveTeacher | EmaTeacher, Field(discriminator="kind")]

# -- privileged context ----------------------------------------------------------------------------------------------


class NoContext(Spec):
    kind: Literal["none"] = "none"


class SiblingSolution(Spec):
    """A rollout of the same group that passed; the rollout's own success is not shown to it by default."""

    kind: Literal["sibling_solution"] = "sibling_solution"
    success_threshold: Fraction = Field(1.0, description="smallest score that counts as a solution")
    own_success: bool = Field(False, description="whether a rollout may be shown its own success")
    feedback: Literal["never", "without_solution", "always"] = Field(
        "never", description="whether the verifier's words are shown too"
    )
    max_context_tokens: Count = Field(512, description="the context is cut to this; instruction and header never are")
    template: Literal["holdfast-1"] = "holdfast-1"


class Feedback(Spec):
    """The verifier's words about the rollout's own failed attempt."""

    kind: Literal["feedback"] = "feedback"
    show_attempt: bool = Field(False, description="whether the rollout's own text is shown with the feedback")
    max_context_tokens: Count = 512
    template: Literal["holdfast-1"] = "holdfast-1"


ContextSpec = Annotated[NoContext | SiblingSolution | Feedback, Field(discriminator="kind")]

# -- supports --------------------------------------------------------------------------------------------------------


class SampledSupport(Spec):
    """The sampled token alone."""

    kind: Literal["sampled"] = "sampled"


class TopKSupport(Spec):
    """The K most likely ids and one tail bucket for the rest, log(1 - sum p) (SDPO eq. 11)."""

    kind: Literal["top_k"] = "top_k"
    k: Count = 20
    support_from: Literal["rollout", "teacher"] = Field("rollout", description="whose top-K it is")
    tail: Literal["bucket"] = "bucket"


class FullSupport(Spec):
    """The whole vocabulary, exactly; the teacher sends hidden states."""

    kind: Literal["full"] = "full"


SupportSpec = Annotated[SampledSupport | TopKSupport | FullSupport, Field(discriminator="kind")]

# -- objectives (row-local; see trainer/objectives) ------------------------------------------------------------------


class PolicyGradient(Spec):
    """Clipped policy gradient on the sampled token with the group's advantage (PPO clip, DAPO's two bounds)."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    clip_low: float = Field(0.2, gt=0.0, lt=1.0)
    clip_high: float = Field(0.2, gt=0.0)
    dual_clip: float | None = Field(None, gt=1.0, description="bound c on the ratio where the advantage is negative")


class ForwardKL(Spec):
    """KL(teacher || policy)."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKL(Spec):
    """KL(policy || teacher); on the sampled token its score-function estimator."""

    kind: Literal["reverse_kl"] = "reverse_kl"


class JensenShannon(Spec):
    """(1 - w) KL(policy || m) + w KL(teacher || m) with m = (1 - w) policy + w teacher."""

    kind: Literal["jensen_shannon"] = "jensen_shannon"
    weight: float = Field(0.5, gt=0.0, lt=1.0)


class CrossEntropy(Spec):
    """Minus the log-probability of the given token."""

    kind: Literal["cross_entropy"] = "cross_entropy"


ObjectiveSpec = Annotated[
    PolicyGradient | ForwardKL | ReverseKL | JensenShannon | CrossEntropy, Field(discriminator="kind")
]
TEACHER_OBJECTIVES = (ForwardKL, ReverseKL, JensenShannon)


class Term(Spec):
    """One summand of the loss, with its own coefficient and its own global denominator."""

    name: Name
    objective: ObjectiveSpec
    coefficient: float = 1.0
    support: SupportSpec = SampledSupport()
    normaliser: Literal["token_mean", "sequence_mean"] = Field(
        "token_mean", description="mean over all counted tokens, or mean over sequences of their token means"
    )
    importance_cap: float | None = Field(
        2.0, gt=0.0, description="truncated importance sampling: min(policy / rollout probability of the token, cap), no gradient"
    )
    skip_first_tokens: int = Field(0, ge=0)
    count_missing_targets: bool = Field(False, description="whether samples without a target count in the denominator")

    @property
    def needs_teacher(self) -> bool:
        return isinstance(self.objective, TEACHER_OBJECTIVES)

    @model_validator(mode="after")
    def _support_fits(self) -> Term:
        if not self.needs_teacher and not isinstance(self.support, SampledSupport):
            raise ValueError(f"{self.objective.kind} works on the sampled token only; support must be sampled, got {self.support.kind}")
        if self.objective.kind in ("forward_kl", "jensen_shannon") and isinstance(self.support, SampledSupport):
            raise ValueError(f"{self.objective.kind} needs a top_k or full support; on the sampled token use reverse_kl")
        return self


class AdvantageSpec(Spec):
    """Rewards of a group to advantages (GRPO, 2402.03300; scale none is Dr. GRPO's)."""

    baseline: Literal["group_mean"] = "group_mean"
    scale: Literal["group_std", "none"] = "group_std"


class Composition(Spec):
    """A complete method: what a recipe resolves to, and what a user may write directly as recipe: custom."""

    experience: ExperienceSpec = PolicyExperience()
    teacher: TeacherSpec | None = None
    context: ContextSpec = NoContext()
    advantage: AdvantageSpec = AdvantageSpec()
    terms: tuple[Term, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Composition:
        names = [term.name for term in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"two terms have the same name: {names}")
        teaching = [term.name for term in self.terms if term.needs_teacher]
        if teaching and self.teacher is None:
            raise ValueError(f"terms {teaching} distil from a teacher, but teacher is not set")
        if self.teacher is not None and not teaching:
            raise ValueError("a teacher is set but no term distils from it")
        if teaching and isinstance(self.teacher, LiveTeacher) and isinstance(self.context, NoContext):
            raise ValueError(
                "a live teacher with no privileged context is the policy itself: the loss is identically zero; "
                "give a context, or use a frozen or ema teacher"
            )
        if isinstance(self.experience, DemonstrationExperience):
            wrong = [term.name for term in self.terms if not isinstance(term.objective, CrossEntropy)]
            if wrong:
                raise ValueError(f"demonstrations carry no rollout log-probabilities: terms {wrong} cannot use them, only cross_entropy can")
        supports = {(term.support.k, term.support.support_from) for term in self.terms if isinstance(term.support, TopKSupport)}
        if len(supports) > 1:
            raise ValueError(f"the terms of one stage share one top-K support, got {sorted(supports)}")
        return self

    @property
    def top_k(self) -> TopKSupport | None:
        return next((term.support for term in self.terms if isinstance(term.support, TopKSupport)), None)

    @property
    def rollout_support_k(self) -> int:
        """How many ids the engine must record at each position; 0 where no term asks."""
        support = self.top_k
        return support.k if support is not None and support.support_from == "rollout" else 0

    @property
    def needs_hidden(self) -> bool:
        return any(isinstance(term.support, FullSupport) for term in self.terms)
