"""Samples to ranks and micro-batches: even tokens per rank, equal numbers of micro-batches, lengths alike within one.

The invariant: every sample is in exactly one micro-batch, and every rank has the same number of them, padded by empty ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.messages import TrainingSample

MicroBatches = tuple[tuple[TrainingSample, ...], ...]


def num_tokens(sample: TrainingSample) -> int:
    """The prompt and all completion tokens but the last: what the sample costs at most in a forward pass, where it may share its prompt."""
    return len(sample.prompt_token_ids) + len(sample.completion_token_ids) - 1


def distribute(samples: Sequence[TrainingSample], *, num_ranks: int, micro_batch_tokens: int) -> tuple[MicroBatches, ...]:
    """Per rank its micro-batches. Longest first, each to the rank with the fewest tokens; deterministic in the samples."""
    ordered = sorted(samples, key=lambda sample: (-num_tokens(sample), sample.sample_id))
    of_rank: list[list[TrainingSample]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for sample in ordered:
        rank = load.index(min(load))
        of_rank[rank].append(sample)
        load[rank] += num_tokens(sample)
    micro_batches = [first_fit(mine, micro_batch_tokens) for mine in of_rank]
    most = max(len(parts) for parts in micro_batches)
    return tuple((*parts, *[()] * (most - len(parts))) for parts in micro_batches)


def first_fit(samples: Sequence[TrainingSample], budget_tokens: int) -> MicroBatches:
    """First-fit decreasing over samples sorted by falling length; a sample above the budget goes alone."""
    parts: list[list[TrainingSample]] = []
    room: list[int] = []
    for sample in samples:
        tokens = num_tokens(sample)
        index = next((index for index, free in enumerate(room) if tokens <= free), None)
        if index is None:
            parts.append([])
            room.append(budget_tokens)
            index = len(parts) - 1
        parts[index].append(sample)
        room[index] -= tokens
    return tuple(tuple(part) for part in parts)
