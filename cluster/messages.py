"""The records that two processes exchange. Frozen, slotted, numpy arrays inside, no torch.

Legend: P prompt tokens, T completion tokens, K support size, H hidden size of the model.
Log-probabilities are natural logarithms (nats), float32, at the sampling temperature of the stage and
normalised over the full vocabulary. Token ids are int32.

A worked example of one rollout: prompt_token_ids [12], completion_token_ids [5] (the end-of-sequence id
included when ``finish_reason == "stop"``), rollout_logprobs [5], support_ids [5, 20].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One item of a domain: what the policy reads, and what stays hidden."""

    problem_id: str
    """Stable and unique in the job: ``<domain name>/<split>/<index>``."""
    domain: str
    """Name of the domain in the job: the stage's name, or the evaluation suite's."""
    messages: tuple[dict[str, str], ...]
    """Chat messages, roles ``system`` and ``user``; the last one is the user's."""
    solution: str
    """A completion that the verifier passes; hidden from the policy."""
    answer: Any = None
    """What the verifier compares with; JSON-serialisable."""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A prompt and how many completions of it are wanted."""

    prompt_token_ids: np.ndarray
    num_completions: int
    seed: int
    """Completion j is sampled with ``seed + j``; callers space their seeds by ``num_completions`` or more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine sampled, with what it knew when it sampled."""

    token_ids: np.ndarray
    """int32 [T], T >= 1; includes the end-of-sequence id when finish_reason is ``stop``."""
    logprobs: np.ndarray
    """float32 [T]"""
    finish_reason: FinishReason
    policy_version: int
    """The publication that the engine held."""
    support_ids: np.ndarray | None = None
    """int32 [T, K], the policy's most likely ids in falling order; None where no term asks for them."""
    support_logprobs: np.ndarray | None = None
    """float32 [T, K]"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One completion of one problem."""

    rollout_id: str
    problem_id: str
    prompt_token_ids: np.ndarray
    completion: Completion
    text: str
    """The completion decoded without special tokens; what the verifier reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """All rollouts of one problem in one step."""

    problem: Problem
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a verifier said of one completion."""

    score: float
    """0.0 to 1.0"""
    passed: bool
    feedback: str = ""
    """In words, what is wrong; a teacher may read it. Empty when nothing is."""
    details: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    """Set when the verifier itself failed (raised, ran out of time): the sample is then marked, not scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivilegedContext:
    """What the teacher sees and the policy does not, for one rollout."""

    problem_id: str
    kind: str
    teacher_prompt_token_ids: np.ndarray
    """int32: the whole teacher prompt, ending with the assistant header."""
    truncated_tokens: int = 0
    """Tokens of context cut away to fit the budget."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherRequest:
    """Score these completion ids after this prompt."""

    rollout_id: str
    problem_id: str
    prompt_token_ids: np.ndarray
    completion_token_ids: np.ndarray
    support_ids: np.ndarray | None = None
    """int32 [T, K]: ids to score at every position, where the support comes from the rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherScores:
    """The teacher's answer for one rollout; only what the supports need is filled."""

    rollout_id: str
    problem_id: str
    teacher_version: int
    completion_digest: str
    """``token_digest`` of the ids that were scored."""
    logprobs: np.ndarray
    """float32 [T] of the sampled tokens"""
    support_ids: np.ndarray | None = None
    """int32 [T, K]"""
    support_logprobs: np.ndarray | None = None
    """float32 [T, K]"""
    entropies: np.ndarray | None = None
    """float32 [T]: of the teacher's distribution at each position, where a mask asks."""
    hidden: np.ndarray | None = None
    """float32 [T, H]: final hidden states, where the learner needs the whole distribution; with the teacher's head they give
    its logits exactly, row chunk by row chunk. A mixed teacher sends both models' states side by side, already weighted,
    and a head of the same width: H is then the sum of theirs."""
    full_logprobs: np.ndarray | None = None
    """float32 [T, V], instead of ``hidden`` where that is less to send."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSample:
    """One rollout as the learner sees it."""

    sample_id: str
    prompt_token_ids: np.ndarray
    completion_token_ids: np.ndarray
    rollout_logprobs: np.ndarray
    term_weights: dict[str, np.ndarray]
    """Per objective term float32 [T]: masks, density and the normaliser's share, without the global denominator.
    A term that is missing here contributes nothing for this sample."""
    term_advantages: dict[str, np.ndarray] = field(default_factory=dict)
    """Per policy-gradient term float32 [T]."""
    old_logprobs: np.ndarray | None = None
    """float32 [T]: the policy's before the first of several updates on one batch, where the learner looked."""
    reference_logprobs: np.ndarray | None = None
    """float32 [T]"""
    support_ids: np.ndarray | None = None
    """int32 [T, K]; with ``join_sampled`` [T, K + 1], where a sampled token that is among the K repeats as the last column"""
    teacher_logprobs: np.ndarray | None = None
    teacher_support_logprobs: np.ndarray | None = None
    teacher_hidden: np.ndarray | None = None
    teacher_full_logprobs: np.ndarray | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShard:
    """What one learner rank trains on in one step: the same number of micro-batches on every rank."""

    micro_batches: tuple[tuple[TrainingSample, ...], ...]
    """Empty tuples pad the shorter ranks. One shard is one optimizer step."""
    term_counts: dict[str, float]
    """This rank's share of every term's denominator; dropped (dead) samples are counted here too."""
    teacher_head: np.ndarray | None = None
    """float32 [V, H]: the teacher's output matrix, only with ``teacher_hidden``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimizer step did. Metrics are global (already reduced over ranks and micro-batches)."""

    loss: float
    gradient_norm: float
    applied: bool
    """False when the step was skipped: no live row anywhere, or a value that is not finite."""
    finite: bool
    metrics: dict[str, float]


def token_digest(token_ids: np.ndarray) -> str:
    """A short digest of exact token ids, so that a re-tokenised completion is noticed."""
    import hashlib

    return hashlib.blake2b(np.ascontiguousarray(token_ids, dtype=np.int32).tobytes(), digest_size=8).hexdigest()
