"""From a rollout that was judged and scored to the sample that the learner reads, or to nothing.

Invariant: a completion whose every term has zero gradient is dead and makes no sample, yet has its share of every
denominator it belongs to. A policy gradient is dead where all its advantages are zero; any other term that has a weight
keeps the completion alive, whatever its score. Legend: T completion tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.messages import Rollout, TeacherScores, TrainingSample
from trainer.advantages import token_advantages
from trainer.masks import CompletionView, MaskContext, TokenTable
from trainer.objectives import ADVANTAGE_KINDS
from trainer.packing_metrics import BatchTally
from trainer.teacher_targets import check_length, teacher_fields
from trainer.term_weights import weigh


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A rollout whose verifier did not fail, before it is known whether anything can be learned from it."""

    rollout: Rollout
    group: int
    """Number of its group in the batch."""
    advantage: float
    """The outcome's."""
    scores: TeacherScores | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchInputs:
    """What is known of a batch besides its rollouts."""

    composition: Any
    context: MaskContext
    table: TokenTable | None
    reference_logprobs: Mapping[str, np.ndarray] | None
    policy_scores: Mapping[str, Any] | None
    masked_token_ids: Mapping[str, frozenset[int]]
    """By domain; the empty name is that of a stage's only teacher."""

    def masked_of(self, problem_id: str) -> frozenset[int]:
        """Ids that the teacher of a problem's domain does not share with the policy."""
        own = self.masked_token_ids.get("", frozenset())
        return self.masked_token_ids.get(problem_id.split("/", 1)[0], own)
    keep_old_logprobs: bool
    """Whether a later update of the batch must know the policy before the first."""


def build_sample(candidate: Candidate, inputs: BatchInputs, counts: dict[str, float], tally: BatchTally) -> TrainingSample | None:
    """The sample, or None where no term has a gradient; adds its share to every term's denominator either way."""
    rollout, scores = candidate.rollout, candidate.scores
    view, comparable = _view(candidate, inputs), _comparable(candidate, inputs, tally)
    weights: dict[str, np.ndarray] = {}
    advantages: dict[str, np.ndarray] = {}
    for term in inputs.composition.terms:
        own = weigh(term, view, inputs.context, comparable=comparable)
        counts[term.name] += own.share
        tally.add_masks(term.name, own.mask_kept, len(view))
        if own.weights is None:
            continue
        kept = own.weights != 0
        tally.add_density(term.name, int(kept.sum()))
        if term.objective.kind in ADVANTAGE_KINDS:
            values = _advantages(candidate, term, comparable)
            tally.add_advantages(term.name, values.values[kept], values.clipped[kept])
            if not np.any(values.values[kept]):
                continue
            advantages[term.name] = values.values
        weights[term.name] = own.weights
    if not weights:
        return None
    live = [term for term in inputs.composition.terms if term.name in weights]
    taught = scores is not None and any(term.needs_teacher for term in live)
    needs_reference = any(term.needs_reference for term in live)
    return TrainingSample(
        sample_id=rollout.rollout_id,
        prompt_token_ids=rollout.prompt_token_ids,
        completion_token_ids=rollout.completion.token_ids,
        rollout_logprobs=rollout.completion.logprobs,
        term_weights=weights,
        term_advantages=advantages,
        old_logprobs=_policy_scores(rollout, inputs).logprobs if inputs.keep_old_logprobs else None,
        reference_logprobs=reference_of(rollout, inputs.reference_logprobs) if needs_reference else None,
        **(teacher_fields(rollout, scores, inputs.composition) if taught else {}),
    )


def _view(candidate: Candidate, inputs: BatchInputs) -> CompletionView:
    completion = candidate.rollout.completion
    policy = _policy_scores(candidate.rollout, inputs) if inputs.policy_scores is not None else None
    return CompletionView(
        rollout_id=candidate.rollout.rollout_id,
        token_ids=completion.token_ids,
        finish_reason=completion.finish_reason,
        table=inputs.table,
        policy_entropies=None if policy is None else policy.entropies,
        teacher_entropies=None if candidate.scores is None else candidate.scores.entropies,
        has_target=candidate.scores is not None,
    )


def _comparable(candidate: Candidate, inputs: BatchInputs, tally: BatchTally) -> np.ndarray | None:
    """bool [T]: the tokens by which teacher and policy mean the same text; None for all, or without a target."""
    masked = inputs.masked_of(candidate.rollout.problem_id)
    if not masked or candidate.scores is None:
        return None
    comparable = ~np.isin(candidate.rollout.completion.token_ids, sorted(masked))
    tally.add_vocabulary(len(comparable), int((~comparable).sum()))
    return comparable


def _advantages(candidate: Candidate, term: Any, comparable: np.ndarray | None):
    spec, scores, completion = term.objective.advantage, candidate.scores, candidate.rollout.completion
    teacher = scores.logprobs if scores is not None and spec.needs_teacher else None
    return token_advantages(
        candidate.advantage,
        spec,
        num_tokens=len(completion.token_ids),
        rollout_logprobs=completion.logprobs,
        teacher_logprobs=teacher,
        comparable=comparable if teacher is not None else None,
    )


def _policy_scores(rollout: Rollout, inputs: BatchInputs) -> Any:
    scores = (inputs.policy_scores or {}).get(rollout.rollout_id)
    if scores is None:
        raise ValueError(f"rollout {rollout.rollout_id}: the learner looked at the batch, but not at this completion")
    check_length(rollout, scores.logprobs, "policy")
    return scores


def reference_of(rollout: Rollout, reference_logprobs: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """float32 [T]; raises ValueError where the reference did not score the completion."""
    values = (reference_logprobs or {}).get(rollout.rollout_id)
    if values is None:
        raise ValueError(f"rollout {rollout.rollout_id}: reference_logprobs, which the composition reads, has none for it")
    return check_length(rollout, values, "reference")
