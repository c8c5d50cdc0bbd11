"""From rollouts, verdicts and teacher scores to one shard of training samples per learner rank.

Legend: T completion tokens, K support size, H hidden size. The invariants: a sample whose every term has zero gradient
never reaches the model, yet stays in the denominators it belongs to; and a score that is not of this problem, these
exact tokens and the expected teacher is an error, never a training signal.

Denominators. ``token_mean``: a token weighs 1 and the denominator counts tokens. ``sequence_mean``: a token weighs
1 / (counted tokens of its sequence) and the denominator counts sequences. A group of equal rewards counts (GRPO's mean
is over all rollouts); a sample without a target counts only where the term says ``count_missing_targets``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import TeacherError
from cluster.messages import BatchShard, Rollout, RolloutGroup, TeacherScores, TrainingSample, Verdict, token_digest
from trainer.advantages import group_advantages
from trainer.balancing import distribute
from trainer.objectives import ADVANTAGE_KINDS
from trainer.packing_metrics import batch_metrics, rollout_metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One step's training data."""

    shards: tuple[BatchShard, ...]
    """One per learner rank, all with the same number of micro-batches."""
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A rollout that was scored, before it is known whether anything can be learned from it."""

    rollout: Rollout
    advantage: float
    scores: TeacherScores | None


def pack(
    groups: Sequence[RolloutGroup],
    verdicts: Sequence[Sequence[Verdict]],
    scores: Sequence[Sequence[TeacherScores | None]] | None,
    composition: Any,
    *,
    num_ranks: int,
    micro_batch_tokens: int,
    teacher_head: np.ndarray | None = None,
    expected_teacher_version: int | None = None,
) -> PackedBatch:
    """Build samples, drop dead ones, spread the rest over ranks and micro-batches of ``micro_batch_tokens`` tokens.

    ``scores`` is None where the composition has no teacher; a None in it is a rollout that the teacher had nothing to say
    about. Samples whose verifier failed are excluded from everything and counted. Raises TeacherError
    (``context_mismatch``, ``completion_tokens_changed``, ``teacher_stale``) for scores that are not of this batch.
    """
    candidates = list(_candidates(groups, verdicts, scores, composition))
    counts = {term.name: 0.0 for term in composition.terms}
    live: list[TrainingSample] = []
    for candidate in candidates:
        if candidate.scores is not None:
            check_scores(candidate.rollout, candidate.scores, expected_teacher_version)
        sample = _build_sample(candidate, composition, counts)
        if sample is not None:
            live.append(sample)
    micro_batches = distribute(live, num_ranks=num_ranks, micro_batch_tokens=micro_batch_tokens)
    shards = tuple(
        BatchShard(
            micro_batches=of_rank,
            term_counts=dict(counts) if rank == 0 else dict.fromkeys(counts, 0.0),
            teacher_head=teacher_head if any(sample.teacher_hidden is not None for part in of_rank for sample in part) else None,
        )
        for rank, of_rank in enumerate(micro_batches)
    )
    needs_teacher = any(term.needs_teacher for term in composition.terms)
    metrics = rollout_metrics(groups, verdicts) | batch_metrics(candidates, live, micro_batches, needs_teacher=needs_teacher)
    return PackedBatch(shards=shards, metrics=metrics)


def _candidates(groups, verdicts, scores, composition: Any) -> Iterator[Candidate]:
    """Every rollout whose verifier did not fail, with its advantage in the group of those."""
    for index, (group, of_group) in enumerate(zip(groups, verdicts, strict=True)):
        group_scores = [None] * len(group.rollouts) if scores is None else scores[index]
        judged = [
            (rollout, verdict, score)
            for rollout, verdict, score in zip(group.rollouts, of_group, group_scores, strict=True)
            if verdict.error is None
        ]
        advantages = group_advantages([verdict.score for _, verdict, _ in judged], composition.advantage)
        for (rollout, _, score), advantage in zip(judged, advantages, strict=True):
            yield Candidate(rollout=rollout, advantage=advantage, scores=score)


def check_scores(rollout: Rollout, scores: TeacherScores, expected_version: int | None) -> None:
    """Raise TeacherError unless the scores are of this problem, these exact tokens and the expected teacher."""
    where = f"rollout {rollout.rollout_id}"
    if scores.problem_id != rollout.problem_id:
        raise TeacherError(
            f"{where} is of problem {rollout.problem_id}, but its teacher read the context of {scores.problem_id}",
            reason="context_mismatch",
        )
    token_ids = rollout.completion.token_ids
    if scores.completion_digest != token_digest(token_ids) or len(scores.logprobs) != len(token_ids):
        raise TeacherError(f"{where}: the teacher scored other token ids than were sampled", reason="completion_tokens_changed")
    if expected_version is not None and scores.teacher_version != expected_version:
        raise TeacherError(
            f"{where} was scored by teacher version {scores.teacher_version}, this step needs {expected_version}", reason="teacher_stale"
        )


def _build_sample(candidate: Candidate, composition: Any, counts: dict[str, float]) -> TrainingSample | None:
    """The sample, or None where no term has a gradient; adds its part to every term's denominator either way."""
    completion = candidate.rollout.completion
    weights = {}
    for term in composition.terms:
        share, per_token = _term_share(term, len(completion.token_ids))
        has_target = candidate.scores is not None or not term.needs_teacher
        if has_target or term.count_missing_targets:
            counts[term.name] += share
        if has_target and share > 0 and not (term.objective.kind in ADVANTAGE_KINDS and candidate.advantage == 0.0):
            weights[term.name] = per_token
    if not weights:
        return None
    scores = candidate.scores
    support_ids = completion.support_ids if scores is None or scores.support_ids is None else scores.support_ids
    return TrainingSample(
        sample_id=candidate.rollout.rollout_id,
        prompt_token_ids=candidate.rollout.prompt_token_ids,
        completion_token_ids=completion.token_ids,
        rollout_logprobs=completion.logprobs,
        advantage=candidate.advantage,
        term_weights=weights,
        support_ids=None if scores is None else support_ids,
        teacher_logprobs=None if scores is None else scores.logprobs,
        teacher_support_logprobs=None if scores is None else scores.support_logprobs,
        teacher_hidden=None if scores is None else scores.hidden,
    )


def _term_share(term: Any, num_tokens: int) -> tuple[float, np.ndarray]:
    """(the sample's part of the term's denominator, float32 [T] token weights)."""
    counted = max(num_tokens - term.skip_first_tokens, 0)
    weights = np.zeros(num_tokens, dtype=np.float32)
    if counted == 0:
        return 0.0, weights
    by_token = term.normaliser == "token_mean"
    weights[num_tokens - counted :] = 1.0 if by_token else 1.0 / counted
    return (float(counted) if by_token else 1.0), weights
