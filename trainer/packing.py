"""From rollouts, verdicts and teacher scores to one shard of training samples per update and learner rank.

The invariants: a sample whose every term has zero gradient never reaches the model, yet stays in the denominators it
belongs to; every update has its own denominators; and a score that is not of this problem, these exact tokens and the
expected teacher is an error, never a training signal. Who weighs what is said in ``term_weights.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.messages import BatchShard, Rollout, RolloutGroup, TeacherScores, TrainingSample, Verdict
from trainer.advantages import outcome_advantages, overlong_penalty, reference_penalty
from trainer.balancing import MicroBatches, distribute
from trainer.masks import MaskContext, TokenTable
from trainer.packing_metrics import BatchTally, batch_metrics, rollout_metrics
from trainer.samples import BatchInputs, Candidate, build_sample, reference_of
from trainer.teacher_targets import check_scores

Groups = Sequence[RolloutGroup]
Verdicts = Sequence[Sequence[Verdict]]
Scores = Sequence[Sequence[TeacherScores | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One step's training data."""

    updates: tuple[tuple[BatchShard, ...], ...]
    """Per optimizer step one shard per learner rank, all of an update with the same number of micro-batches."""
    metrics: dict[str, float]


def pack(
    groups: Groups,
    verdicts: Verdicts,
    scores: Scores | None,
    composition: Any,
    *,
    num_ranks: int,
    micro_batch_tokens: int,
    step: int,
    max_tokens: int,
    table: TokenTable | None,
    updates: int = 1,
    teacher_head: np.ndarray | None = None,
    expected_teacher_version: int | None = None,
    reference_logprobs: Mapping[str, np.ndarray] | None = None,
    policy_scores: Mapping[str, Any] | None = None,
    masked_token_ids: Mapping[str, frozenset[int]] | None = None,
) -> PackedBatch:
    """Build samples, drop dead ones, deal the rest to updates, ranks and micro-batches of ``micro_batch_tokens`` tokens.

    ``scores`` is None where the composition has no teacher; a None in it is a rollout that the teacher had nothing to say
    about. ``step`` counts from 0 in the stage. ``policy_scores`` are the learner's, from before the first update. On
    ``masked_token_ids`` the teacher's vocabulary differs. Samples whose verifier failed are excluded from everything and
    counted. Raises TeacherError (``context_mismatch``, ``completion_tokens_changed``, ``teacher_stale``) for scores that are
    not of this batch, StageError for a pattern that cannot be matched.
    """
    inputs = BatchInputs(
        composition=composition,
        context=MaskContext(step=step, max_tokens=max_tokens),
        table=table,
        reference_logprobs=reference_logprobs,
        policy_scores=policy_scores,
        masked_token_ids=masked_token_ids or {},
        keep_old_logprobs=updates > 1 and policy_scores is not None,
    )
    tally = BatchTally(composition)
    candidates = _candidates(groups, verdicts, scores, inputs, tally)
    for candidate in candidates:
        tally.add_candidate(candidate)
        if candidate.scores is not None:
            check_scores(candidate.rollout, candidate.scores, expected_teacher_version)
    live: list[list[TrainingSample]] = [[] for _ in range(updates)]
    counts = [{term.name: 0.0 for term in composition.terms} for _ in range(updates)]
    for candidate, update in zip(candidates, _deal(candidates, len(groups), updates), strict=True):
        sample = build_sample(candidate, inputs, counts[update], tally)
        if sample is not None:
            live[update].append(sample)
    parts = [distribute(samples, num_ranks=num_ranks, micro_batch_tokens=micro_batch_tokens) for samples in live]
    metrics = rollout_metrics(groups, verdicts) | batch_metrics(candidates, parts) | tally.metrics()
    shards = tuple(_shards(of_update, own, teacher_head) for of_update, own in zip(parts, counts, strict=True))
    return PackedBatch(updates=shards, metrics=metrics)


def _candidates(
    groups: Groups, verdicts: Verdicts, scores: Scores | None, inputs: BatchInputs, tally: BatchTally
) -> list[Candidate]:
    """Every rollout whose verifier did not fail, with its outcome's advantage among those."""
    judged = []
    for index, (group, of_group) in enumerate(zip(groups, verdicts, strict=True)):
        group_scores = [None] * len(group.rollouts) if scores is None else scores[index]
        together = zip(group.rollouts, of_group, group_scores, strict=True)
        judged.append([(rollout, verdict, score) for rollout, verdict, score in together if verdict.error is None])
    shaped = [[_shaped_score(rollout, verdict, inputs, tally) for rollout, verdict, _ in of_group] for of_group in judged]
    advantages = outcome_advantages(shaped, inputs.composition.advantage)
    return [
        Candidate(rollout=rollout, group=index, advantage=advantage, scores=score)
        for index, (of_group, own) in enumerate(zip(judged, advantages, strict=True))
        for (rollout, _, score), advantage in zip(of_group, own, strict=True)
    ]


def _shaped_score(rollout: Rollout, verdict: Verdict, inputs: BatchInputs, tally: BatchTally) -> float:
    """The verifier's score and the penalties that the composition adds to it."""
    spec, completion, score = inputs.composition.advantage, rollout.completion, verdict.score
    if spec.overlong is not None:
        penalty = overlong_penalty(len(completion.token_ids), inputs.context.max_tokens, spec.overlong)
        score += tally.add_penalty("overlong", penalty)
    if spec.reference_penalty is not None:
        reference = reference_of(rollout, inputs.reference_logprobs)
        score += tally.add_penalty("reference", reference_penalty(completion.logprobs, reference, spec.reference_penalty))
    return score


def _deal(candidates: Sequence[Candidate], num_groups: int, updates: int) -> list[int]:
    """The update of every candidate: runs of whole groups where there are enough of them, else of rollouts.

    Runs, not turns: the groups of a mixture alternate between its domains, and every update should see all of them.
    """
    if num_groups >= updates:
        return [candidate.group * updates // num_groups for candidate in candidates]
    return [index * updates // len(candidates) for index in range(len(candidates))]


def _shards(
    of_ranks: Sequence[MicroBatches], counts: dict[str, float], teacher_head: np.ndarray | None
) -> tuple[BatchShard, ...]:
    return tuple(
        BatchShard(
            micro_batches=parts,
            term_counts=dict(counts) if rank == 0 else dict.fromkeys(counts, 0.0),
            teacher_head=teacher_head if any(sample.teacher_hidden is not None for part in parts for sample in part) else None,
        )
        for rank, parts in enumerate(of_ranks)
    )
