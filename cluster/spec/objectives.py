"""What a term makes of a token: objectives, all row-local (``trainer/objectives``), and the advantages that they read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.spec.base import Fraction, Spec


class TokenAdvantage(Spec):
    """A_t = outcome_weight * A_outcome + teacher_weight * sum_{u >= t} future_coupling^(u - t) (log q_u - log p_u).

    q is the teacher's probability of the sampled token, p the rollout's. With teacher_weight 1 and outcome_weight 0 it is
    sampled-token on-policy distillation (SDPO prop. 2.1; Thinking Machines; G-OPD with a mixed teacher).
    """

    outcome_weight: float = Field(1.0, ge=0.0)
    teacher_weight: float = Field(0.0, ge=0.0)
    future_coupling: Fraction = Field(0.0, description="gamma: 0 looks at the token alone, 1 at the rest of the sequence")
    log_ratio_clip: float | None = Field(None, gt=0.0, description="each log q - log p is held within this, before it is summed")
    level: Literal["token", "sequence"] = Field("token", description="sequence: the mean over the completion, for all its tokens")
    clip: float | None = Field(None, gt=0.0, description="A_t is held within this")

    @property
    def needs_teacher(self) -> bool:
        return self.teacher_weight > 0.0


class PolicyGradient(Spec):
    """Clipped policy gradient on the sampled token (PPO clip, DAPO's two bounds); without bounds it is r A."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    clip_low: float | None = Field(0.2, gt=0.0, lt=1.0)
    clip_high: float | None = Field(0.2, gt=0.0)
    dual_clip: float | None = Field(None, gt=1.0, description="bound c on the ratio where the advantage is negative")
    advantage: TokenAdvantage = TokenAdvantage()


class DivergenceSpec(Spec):
    """What every divergence has."""

    entry_clip: float | None = Field(None, gt=0.0, description="upper bound of each vocabulary entry's summand (OPSD, 2601.18734)")
    token_clip: float | None = Field(None, gt=0.0, description="upper bound of a token's value")
    log_ratio_clip: float | None = Field(None, gt=0.0, description="log p - log q is held within this (2603.25562)")


class ForwardKL(DivergenceSpec):
    """KL(teacher || policy); on the sampled token with weight q / p."""

    kind: Literal["forward_kl"] = "forward_kl"


class ReverseKL(DivergenceSpec):
    """KL(policy || teacher); on the sampled token its score-function estimator."""

    kind: Literal["reverse_kl"] = "reverse_kl"


class JensenShannon(DivergenceSpec):
    """(1 - w) KL(policy || m) + w KL(teacher || m) with m = (1 - w) policy + w teacher."""

    kind: Literal["jensen_shannon"] = "jensen_shannon"
    weight: float = Field(0.5, gt=0.0, lt=1.0)


class CrossEntropy(Spec):
    """Minus the log-probability of the given token."""

    kind: Literal["cross_entropy"] = "cross_entropy"


class ReferenceKL(Spec):
    """A penalty for leaving the reference, on the sampled token. Gradients: k2's is that of KL(policy || reference), k3's
    that of KL(reference || policy)."""

    kind: Literal["reference_kl"] = "reference_kl"
    estimator: Literal["k1", "k2", "k3"] = "k3"


class EntropyBonus(Spec):
    """Minus the policy's entropy over the vocabulary: a positive coefficient keeps the policy spread."""

    kind: Literal["entropy_bonus"] = "entropy_bonus"


ObjectiveSpec = Annotated[
    PolicyGradient | ForwardKL | ReverseKL | JensenShannon | CrossEntropy | ReferenceKL | EntropyBonus, Field(discriminator="kind")
]
DIVERGENCES = (ForwardKL, ReverseKL, JensenShannon)


class OverlongPenalty(Spec):
    """Scores sink linearly over the last ``buffer_tokens`` before the limit: min(0, -(len - (max - buffer)) / buffer * penalty)
    (DAPO, 2503.14476, eq. 13)."""

    buffer_tokens: int = Field(ge=1)
    penalty: float = Field(1.0, gt=0.0)


class RewardPenalty(Spec):
    """coefficient * sum_t kl_t(rollout, reference) is taken off a completion's score before advantages are formed."""

    coefficient: float = Field(gt=0.0)
    estimator: Literal["k1", "k2", "k3"] = "k1"


class AdvantageSpec(Spec):
    """Scores of a group to outcome advantages (GRPO, 2402.03300; scale none is Dr. GRPO's, 2503.20783)."""

    baseline: Literal["group_mean", "leave_one_out", "none"] = "group_mean"
    scale: Literal["group_std", "batch_std", "none"] = "group_std"
    overlong: OverlongPenalty | None = None
    reference_penalty: RewardPenalty | None = None
