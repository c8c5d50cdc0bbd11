"""What is worth recording of a step's rollouts and of the batch made of them. Pure; numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.messages import RolloutGroup, Verdict
from trainer.balancing import MicroBatches, num_tokens
from trainer.objectives import ADVANTAGE_KINDS


def rollout_metrics(groups: Sequence[RolloutGroup], verdicts: Sequence[Sequence[Verdict]]) -> dict[str, float]:
    """Scores, lengths, truncation, verifier errors; scores over the samples whose verifier did not fail."""
    completions = [rollout.completion for group in groups for rollout in group.rollouts]
    flat = [verdict for of_group in verdicts for verdict in of_group]
    judged = [verdict for verdict in flat if verdict.error is None]
    lengths = np.array([len(completion.token_ids) for completion in completions])
    groups_judged = [scores for of_group in verdicts if (scores := [verdict.score for verdict in of_group if verdict.error is None])]
    metrics = {"rollout/count": float(len(completions))}
    if completions:
        metrics |= {
            "rollout/length_mean": float(lengths.mean()),
            "rollout/length_p95": float(np.percentile(lengths, 95)),
            "rollout/length_max": float(lengths.max()),
            "rollout/truncated_share": float(np.mean([completion.finish_reason == "length" for completion in completions])),
            "rollout/prompt_length_mean": float(np.mean([len(r.prompt_token_ids) for group in groups for r in group.rollouts])),
            "rollout/verifier_error_share": 1.0 - len(judged) / len(flat),
        }
    if judged:
        metrics |= {
            "rollout/score_mean": float(np.mean([verdict.score for verdict in judged])),
            "rollout/passed_share": float(np.mean([verdict.passed for verdict in judged])),
            "rollout/equal_score_groups_share": float(np.mean([min(scores) == max(scores) for scores in groups_judged])),
            "rollout/solved_groups_share": float(np.mean([max(scores) == 1.0 for scores in groups_judged])),
        }
    return metrics


def batch_metrics(candidates: Sequence[Any], updates: Sequence[Sequence[MicroBatches]]) -> dict[str, float]:
    """Samples that reach the model and those that do not, and how evenly the ranks are loaded; ``updates`` per rank its parts."""
    samples = [sample for of_update in updates for parts in of_update for part in parts for sample in part]
    metrics = {
        "batch/samples": float(len(candidates)),
        "batch/live_samples": float(len(samples)),
        "batch/tokens": float(sum(map(num_tokens, samples))),
        "batch/micro_batches": float(sum(len(of_update[0]) for of_update in updates)),
    }
    if candidates:
        metrics["batch/dead_share"] = 1.0 - len(samples) / len(candidates)
    if samples:
        loads = [[sum(num_tokens(sample) for part in parts for sample in part) for parts in of_update] for of_update in updates]
        # ranks wait for the slowest at every update
        metrics["batch/rank_imbalance"] = sum(max(load) for load in loads) * len(loads[0]) / sum(map(sum, loads))
    return metrics


class BatchTally:
    """Counts what masks, targets, advantages and penalties did to a batch, completion by completion."""

    def __init__(self, composition: Any):
        self._terms = composition.terms
        self._has_teacher = composition.teacher is not None
        self._tokens = 0
        self._targets: list[bool] = []
        self._outcomes: list[float] = []
        self._kept: dict[str, int] = {term.name: 0 for term in composition.terms}
        self._masks: dict[tuple[str, str], list[int]] = {}
        self._advantages: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        self._penalties: dict[str, list[float]] = {}
        self._vocabulary = [0, 0]

    def add_candidate(self, candidate: Any) -> None:
        self._tokens += len(candidate.rollout.completion.token_ids)
        self._targets.append(candidate.scores is not None)
        self._outcomes.append(candidate.advantage)

    def add_masks(self, term: str, kept: Sequence[tuple[str, int]], num_tokens: int) -> None:
        for kind, count in kept:
            sums = self._masks.setdefault((term, kind), [0, 0])
            sums[0] += count
            sums[1] += num_tokens

    def add_density(self, term: str, kept: int) -> None:
        self._kept[term] += kept

    def add_advantages(self, term: str, values: np.ndarray, clipped: np.ndarray) -> None:
        """Of the tokens that the term keeps, dead ones too."""
        self._advantages.setdefault(term, []).append((values, clipped))

    def add_penalty(self, name: str, value: float) -> float:
        """Returns the penalty, so that it can be counted where it is added."""
        self._penalties.setdefault(name, []).append(value)
        return value

    def add_vocabulary(self, num_tokens: int, masked: int) -> None:
        """Tokens of completions with a target, and those on which the teacher's vocabulary differs."""
        self._vocabulary[0] += num_tokens
        self._vocabulary[1] += masked

    def metrics(self) -> dict[str, float]:
        metrics = {f"mask/{term}/{kind}/kept_share": kept / tokens for (term, kind), (kept, tokens) in self._masks.items()}
        if self._tokens:
            metrics |= {f"density/{term}": kept / self._tokens for term, kept in self._kept.items()}
        if self._targets and self._has_teacher:
            metrics["batch/target_share"] = float(np.mean(self._targets))
        if self._vocabulary[0]:
            metrics["teacher/masked_vocabulary_share"] = self._vocabulary[1] / self._vocabulary[0]
        metrics |= {f"advantage/{name}_penalty_mean": float(np.mean(values)) for name, values in self._penalties.items()}
        if self._outcomes and any(term.objective.kind in ADVANTAGE_KINDS for term in self._terms):
            metrics |= {"advantage/mean": float(np.mean(self._outcomes)), "advantage/std": float(np.std(self._outcomes))}
        for term, parts in self._advantages.items():
            values, clipped = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            metrics |= {
                f"advantage/{term}/mean": float(values.mean(dtype=np.float64)),
                f"advantage/{term}/std": float(values.std(dtype=np.float64)),
                f"advantage/{term}/clipped_share": float(clipped.mean()),
            }
        return metrics
