"""A batch of three groups of three rollouts, and what the tests of packing do with it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from token_table import AsciiTable

from cluster.messages import Completion, Problem, Rollout, RolloutGroup, TeacherScores, TrainingSample, Verdict, token_digest
from cluster.spec.composition import Composition, Term
from cluster.spec.objectives import ForwardKL, PolicyGradient
from cluster.spec.supports import FullSupport
from cluster.spec.teachers import EmaTeacher
from trainer.packing import PackedBatch, pack

LENGTHS = ((4, 2, 6), (3, 3, 5), (1, 8, 2))
SCORES = ((0.0, 1.0, 0.5), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0))
TOKENS = sum(map(sum, LENGTHS))
IDS = [f"r{group}.{member}" for group in range(3) for member in range(3)]
K = 4


def make_groups() -> list[RolloutGroup]:
    groups = []
    for index, lengths in enumerate(LENGTHS):
        problem = Problem(problem_id=f"d/train/{index}", domain="d", messages=({"role": "user", "content": "?"},), solution="!")
        rollouts = tuple(
            Rollout(
                rollout_id=f"r{index}.{member}",
                problem_id=problem.problem_id,
                prompt_token_ids=np.arange(5 + index, dtype=np.int32),
                completion=Completion(
                    token_ids=np.arange(length, dtype=np.int32) + 10 * member,
                    logprobs=np.full(length, -1.0, np.float32),
                    finish_reason="length" if length == 8 else "stop",
                    policy_version=3,
                    support_ids=np.tile(np.arange(K, dtype=np.int32), (length, 1)),
                ),
                text="",
            )
            for member, length in enumerate(lengths)
        )
        groups.append(RolloutGroup(problem=problem, rollouts=rollouts))
    return groups


def make_verdicts(errors=(), scores=SCORES) -> list[list[Verdict]]:
    return [
        [Verdict(score=score, passed=score == 1.0, error="boom" if (g, m) in errors else None) for m, score in enumerate(of_group)]
        for g, of_group in enumerate(scores)
    ]


def make_scores(groups=None, missing=(), **changes) -> list[list[TeacherScores | None]]:
    def score(rollout):
        length = len(rollout.completion.token_ids)
        fields = {
            "rollout_id": rollout.rollout_id,
            "problem_id": rollout.problem_id,
            "teacher_version": 9,
            "completion_digest": token_digest(rollout.completion.token_ids),
            "logprobs": np.full(length, -2.0, np.float32),
            "support_logprobs": np.full((length, K), -3.0, np.float32),
            "hidden": np.zeros((length, 2), np.float32),
        }
        fields |= {name: value(rollout) if callable(value) else value for name, value in changes.items()}
        return TeacherScores(**fields)

    groups = make_groups() if groups is None else groups
    return [[None if (g, m) in missing else score(rollout) for m, rollout in enumerate(group.rollouts)] for g, group in enumerate(groups)]


def per_rollout(values) -> dict[str, np.ndarray]:
    """By rollout id what ``values(rollout)`` gives."""
    return {rollout.rollout_id: values(rollout) for group in make_groups() for rollout in group.rollouts}


def policy_looked(entropies=None) -> dict[str, SimpleNamespace]:
    """What the learner saw before the first update: log-probability -1.5 everywhere, entropies by position if wanted."""
    return per_rollout(
        lambda rollout: SimpleNamespace(
            logprobs=np.full(len(rollout.completion.token_ids), -1.5, np.float32),
            entropies=None if entropies is None else entropies(len(rollout.completion.token_ids)),
        )
    )


def pg(advantage=None, **fields) -> Composition:
    return Composition(
        **({"advantage": advantage} if advantage else {}), terms=(Term(name="pg", objective=PolicyGradient(), **fields),)
    )


def kl(**fields) -> Composition:
    return Composition(teacher=EmaTeacher(), terms=(Term(name="kl", objective=ForwardKL(), support=FullSupport(), **fields),))


def pack_cases(composition, *, scores=None, errors=(), num_ranks=1, budget=1000, verdicts=None, groups=None, **more) -> PackedBatch:
    given = {"step": 0, "max_tokens": 8, "table": AsciiTable(), **more}
    groups = make_groups() if groups is None else groups
    verdicts = make_verdicts(errors) if verdicts is None else verdicts
    return pack(groups, verdicts, scores, composition, num_ranks=num_ranks, micro_batch_tokens=budget, **given)


def samples_of(packed: PackedBatch, update: int | None = None) -> dict[str, TrainingSample]:
    updates = packed.updates if update is None else (packed.updates[update],)
    return {sample.sample_id: sample for shards in updates for shard in shards for part in shard.micro_batches for sample in part}


def count_of(packed: PackedBatch, name: str, update: int = 0) -> float:
    return sum(shard.term_counts[name] for shard in packed.updates[update])
