"""What is worth recording of a step's rollouts and of the batch made of them. Pure; numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.messages import RolloutGroup, TrainingSample, Verdict
from trainer.balancing import MicroBatches, num_tokens


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


def batch_metrics(
    candidates: Sequence[Any], live: Sequence[TrainingSample], micro_batches: Sequence[MicroBatches], *, needs_teacher: bool
) -> dict[str, float]:
    """Samples that reach the model and those that do not, and how evenly the ranks are loaded."""
    per_rank = [sum(num_tokens(sample) for part in of_rank for sample in part) for of_rank in micro_batches]
    metrics = {
        "batch/samples": float(len(candidates)),
        "batch/live_samples": float(len(live)),
        "batch/tokens": float(sum(per_rank)),
        "batch/micro_batches": float(len(micro_batches[0])),
    }
    if candidates:
        metrics["batch/dead_share"] = 1.0 - len(live) / len(candidates)
        if needs_teacher:
            metrics["batch/target_share"] = float(np.mean([candidate.scores is not None for candidate in candidates]))
    if sum(per_rank):
        metrics["batch/rank_imbalance"] = max(per_rank) * len(per_rank) / sum(per_rank)
    return metrics
