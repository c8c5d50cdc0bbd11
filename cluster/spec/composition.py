"""A complete method. A recipe is a function that returns a ``Composition``.

Nothing in the training loop asks for a method's name: SDPO, SDFT, GRPO and every hybrid are rows of one table,
experience x teacher weights x privileged context x objective terms (support, masks, clips, normaliser).
Equations: methods.md of the project's notes; the papers are named with each part.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cluster.spec.base import Count, Name, Spec, cannot_learn
from cluster.spec.contexts import ContextSpec, NoContext
from cluster.spec.experience import ExperienceSpec, PolicyExperience
from cluster.spec.masks import EntropyQuantileMask, EntropyThresholdMask, MaskSpec
from cluster.spec.objectives import DIVERGENCES, AdvantageSpec, ObjectiveSpec, PolicyGradient, ReferenceKL
from cluster.spec.supports import FullSupport, SampledSupport, SupportSpec, TopKSupport
from cluster.spec.teachers import EmaTeacher, TeacherSpec, single_teachers

Normaliser = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


class Term(Spec):
    """One summand of the loss, with its own coefficient and its own global denominator."""

    name: Name
    objective: ObjectiveSpec
    coefficient: float = 1.0
    support: SupportSpec = SampledSupport()
    normaliser: Normaliser = Field(
        "token_mean",
        description="mean over all counted tokens; mean over sequences of their token means; mean over sequences of their token "
        "sums; or the sum over tokens divided by sequences times normaliser_tokens",
    )
    normaliser_tokens: Count | None = Field(None, description="of normaliser constant; the stage's max_tokens where null")
    importance_cap: float | None = Field(
        2.0, gt=0.0, description="truncated importance sampling: min(policy / rollout probability of the token, cap), no gradient"
    )
    importance_level: Literal["token", "sequence_mean"] = Field(
        "token", description="the weight of each token, or the mean of a sequence's token weights for all of them"
    )
    masks: tuple[MaskSpec, ...] = ()
    samples: Literal["all", "with_target", "without_target"] = Field(
        "all", description="rollouts that the term sees: without_target is the fall-back where the teacher has nothing to say"
    )
    count_missing_targets: bool = Field(
        False, description="whether samples that the term does not see count in its denominator: those without a target, or those with one"
    )

    @property
    def needs_teacher(self) -> bool:
        if isinstance(self.objective, PolicyGradient):
            return self.objective.advantage.needs_teacher
        return isinstance(self.objective, DIVERGENCES)

    @property
    def needs_reference(self) -> bool:
        return isinstance(self.objective, ReferenceKL)

    def reads_entropy(self, whose: str) -> bool:
        """Whether a mask of the term needs the entropy of ``policy`` or ``teacher`` at every token."""
        return any(isinstance(mask, EntropyQuantileMask | EntropyThresholdMask) and mask.of == whose for mask in self.masks)


class L2Anchor(Spec):
    """coefficient / 2 * |theta - theta_0|^2 over all weights, with theta_0 where the stage began or the base model."""

    to: Literal["stage_start", "base"] = "stage_start"
    coefficient: float = Field(gt=0.0)


class Composition(Spec):
    """A complete method: what a recipe resolves to, and what a user may write directly as recipe: custom."""

    experience: ExperienceSpec = PolicyExperience()
    teacher: TeacherSpec | None = None
    context: ContextSpec = NoContext()
    domain_contexts: dict[Name, ContextSpec] = Field({}, description="by domain name, instead of context")
    advantage: AdvantageSpec = AdvantageSpec()
    terms: tuple[Term, ...] = Field(min_length=1)
    l2_anchor: L2Anchor | None = None

    @model_validator(mode="after")
    def _can_learn(self) -> Composition:
        from cluster.spec.refusals import refusals

        reasons = refusals(self)
        if reasons:
            raise cannot_learn(reasons)
        return self

    @property
    def top_k(self) -> TopKSupport | None:
        """The one top-K support of the stage."""
        return next((term.support for term in self.terms if isinstance(term.support, TopKSupport)), None)

    @property
    def rollout_support_k(self) -> int:
        """How many ids the engine must record at each position; 0 where no term asks."""
        support = self.top_k
        return support.k if support is not None and support.support_from == "rollout" else 0

    @property
    def teacher_support_k(self) -> int:
        """How many of the teacher's own most likely ids it must send; 0 where no term asks."""
        support = self.top_k
        return support.k if support is not None and support.support_from == "teacher" else 0

    @property
    def needs_full_teacher(self) -> bool:
        """Whether the learner needs the teacher's whole distribution: a full support, or the learner's own current top-K."""
        return any(
            isinstance(term.support, FullSupport) or (isinstance(term.support, TopKSupport) and term.support.support_from == "policy")
            for term in self.terms
        )

    @property
    def needs_reference(self) -> bool:
        """Whether the sampled tokens' log-probabilities under the reference are needed."""
        return self.advantage.reference_penalty is not None or any(term.needs_reference for term in self.terms)

    @property
    def needs_scorer(self) -> bool:
        """Whether a teacher process is needed: for a teacher, a reference, or both."""
        return self.teacher is not None or self.needs_reference

    @property
    def follows_every_update(self) -> bool:
        """Whether the teacher must see the weights of every optimizer step, not of every batch alone."""
        singles = () if self.teacher is None else single_teachers(self.teacher)
        return any(isinstance(one, EmaTeacher) and one.every == "optimizer_step" for one in singles)

    @property
    def needs_policy_entropy(self) -> bool:
        """Whether the learner must look at the batch once before it is packed."""
        return any(term.reads_entropy("policy") for term in self.terms)

    @property
    def needs_teacher_entropy(self) -> bool:
        return any(term.reads_entropy("teacher") for term in self.terms)

    def context_of(self, domain: str) -> ContextSpec:
        return self.domain_contexts.get(domain, self.context)


class NoMethod(Composition):
    """What a given stage has in place of a method: no term, no teacher, nothing to learn from."""

    terms: tuple[Term, ...] = Field((), max_length=0)
