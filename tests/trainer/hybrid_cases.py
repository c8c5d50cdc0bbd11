"""Compositions that mix every kind of term, and one random batch that each of them can be packed from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import log_softmax
from tiny_policy import HIDDEN, TEMPERATURE, VOCABULARY, teacher_head
from token_table import AsciiTable

from cluster.messages import Completion, Problem, Rollout, RolloutGroup, TeacherScores, Verdict, token_digest
from cluster.spec.composition import Composition, L2Anchor, Term
from cluster.spec.contexts import SiblingSolution
from cluster.spec.masks import EntropyQuantileMask, EntropyThresholdMask, PatternMask, RandomMask, SkipFirstMask
from cluster.spec.objectives import (
    AdvantageSpec,
    EntropyBonus,
    ForwardKL,
    JensenShannon,
    PolicyGradient,
    ReferenceKL,
    ReverseKL,
    RewardPenalty,
    TokenAdvantage,
)
from cluster.spec.supports import FullSupport, TopKSupport
from cluster.spec.teachers import EmaTeacher
from trainer.packing import PackedBatch, pack
from trainer.sequence_scores import SequenceScores

K, GROUPS, MEMBERS = 5, 4, 3

BLEND = PolicyGradient(
    clip_high=0.28, dual_clip=3.0, advantage=TokenAdvantage(outcome_weight=0.9, teacher_weight=0.1, future_coupling=0.5, clip=5.0)
)
EVERYTHING = Composition(
    teacher=EmaTeacher(),
    context=SiblingSolution(),
    advantage=AdvantageSpec(scale="batch_std", reference_penalty=RewardPenalty(coefficient=0.01)),
    terms=(
        Term(
            name="blend",
            objective=BLEND,
            normaliser="constant",
            normaliser_tokens=7,
            importance_level="sequence_mean",
            masks=(RandomMask(ratio=0.3, denominator="all"),),
        ),
        Term(
            name="kl",
            objective=JensenShannon(),
            support=FullSupport(),
            coefficient=0.5,
            normaliser="sequence_mean",
            importance_level="sequence_mean",
            masks=(SkipFirstMask(tokens=1), EntropyQuantileMask(of="policy", keep=0.6)),
        ),
        Term(
            name="reference",
            objective=ReferenceKL(),
            coefficient=0.04,
            normaliser="sequence_sum",
            masks=(PatternMask(pattern="[0-9]"), RandomMask(ratio=0.2)),
        ),
        Term(name="bonus", objective=EntropyBonus(), coefficient=0.01, samples="without_target"),
    ),
    l2_anchor=L2Anchor(coefficient=0.05),
)
JOINED = Composition(
    teacher=EmaTeacher(),
    terms=(
        Term(name="pg", objective=PolicyGradient(clip_low=None, clip_high=None), normaliser="sequence_mean", importance_cap=None),
        Term(name="top", objective=ReverseKL(), support=TopKSupport(k=K, join_sampled=True, tail="renormalise"), importance_cap=None),
        Term(name="token", objective=ForwardKL(token_clip=3.0), importance_cap=2.0, normaliser="sequence_mean"),
        Term(name="reference", objective=ReferenceKL(estimator="k2"), coefficient=0.1),
    ),
)
OWN_TOP_K = Composition(
    teacher=EmaTeacher(),
    terms=(
        Term(name="top", objective=ReverseKL(), support=TopKSupport(k=K, support_from="policy", tail="sampled_correction")),
        Term(name="full", objective=ForwardKL(entry_clip=0.5), support=FullSupport(), coefficient=0.3, normaliser="sequence_sum"),
        Term(name="bonus", objective=EntropyBonus(), coefficient=0.02, masks=(EntropyThresholdMask(of="teacher", above_nats=2.0),)),
    ),
)
TEACHERS_TOP_K = Composition(
    teacher=EmaTeacher(),
    terms=(
        Term(name="bucket", objective=JensenShannon(weight=0.3), support=TopKSupport(k=K, support_from="teacher")),
        Term(name="drop", objective=ForwardKL(), support=TopKSupport(k=K, support_from="teacher", tail="drop"), normaliser="constant"),
        Term(name="token", objective=ReverseKL(log_ratio_clip=5.0), importance_level="sequence_mean"),
    ),
)
CASES = {"everything": EVERYTHING, "joined": JOINED, "own_top_k": OWN_TOP_K, "teachers_top_k": TEACHERS_TOP_K}


def pack_batch(composition: Composition, *, num_ranks: int = 1, budget: int = 10_000, updates: int = 1, equal_scores: bool = False) -> PackedBatch:
    """Pack the batch; the same one for every composition, ranks and budget. A third of the rollouts have no target."""
    generator = np.random.default_rng(11)
    groups = _groups(generator)
    scores, masked = [[None] * MEMBERS for _ in groups], generator.random((GROUPS, MEMBERS)) < 0.33
    for number, group in enumerate(groups):
        for member, rollout in enumerate(group.rollouts):
            scored = _score(rollout, composition, generator)
            scores[number][member] = None if masked[number, member] else scored
    verdicts = [[Verdict(score=1.0 if equal_scores else float(generator.random()), passed=False) for _ in group.rollouts] for group in groups]
    return pack(
        groups,
        verdicts,
        scores,
        composition,
        num_ranks=num_ranks,
        micro_batch_tokens=budget,
        step=3,
        max_tokens=12,
        table=AsciiTable(),
        updates=updates,
        teacher_head=teacher_head(),
        reference_logprobs=_each(groups, lambda tokens: _logprobs(generator, tokens)),
        policy_scores=_each(groups, lambda tokens: SequenceScores(logprobs=_logprobs(generator, tokens), entropies=generator.random(tokens))),
    )


def _groups(generator: np.random.Generator) -> list[RolloutGroup]:
    groups = []
    for number in range(GROUPS):
        problem = Problem(problem_id=f"d/train/{number}", domain="d", messages=({"role": "user", "content": "?"},), solution="!")
        prompt = generator.integers(0, VOCABULARY, int(generator.integers(2, 9))).astype(np.int32)
        rollouts = []
        for member in range(MEMBERS):
            tokens = int(generator.integers(1, 12))
            completion = Completion(
                token_ids=generator.integers(0, VOCABULARY, tokens).astype(np.int32),
                logprobs=_logprobs(generator, tokens),
                finish_reason="stop",
                policy_version=1,
                support_ids=np.stack([generator.permutation(VOCABULARY)[:K] for _ in range(tokens)]).astype(np.int32),
            )
            rollout_id = f"0/3/{number}/{member}"
            rollouts.append(
                Rollout(rollout_id=rollout_id, problem_id=problem.problem_id, prompt_token_ids=prompt, completion=completion, text="")
            )
        groups.append(RolloutGroup(problem=problem, rollouts=tuple(rollouts)))
    return groups


def _score(rollout: Rollout, composition: Composition, generator: np.random.Generator) -> TeacherScores:
    """A teacher of random hidden states; everything else follows from them."""
    token_ids, support = rollout.completion.token_ids, composition.top_k
    hidden = generator.normal(size=(len(token_ids), HIDDEN)).astype(np.float32)
    full = log_softmax(hidden @ teacher_head().T / TEMPERATURE, axis=1).astype(np.float32)
    is_own = support is not None and support.support_from == "teacher"
    ids = np.argsort(-full, axis=1)[:, :K].astype(np.int32) if is_own else rollout.completion.support_ids
    sends_logits = support is not None and support.support_from == "policy"
    return TeacherScores(
        rollout_id=rollout.rollout_id,
        problem_id=rollout.problem_id,
        teacher_version=1,
        completion_digest=token_digest(token_ids),
        logprobs=np.take_along_axis(full, token_ids[:, None].astype(np.int64), 1)[:, 0],
        support_ids=ids if is_own else None,
        support_logprobs=np.take_along_axis(full, ids.astype(np.int64), 1),
        entropies=-(np.exp(full) * full).sum(1),
        hidden=None if sends_logits or not composition.needs_full_teacher else hidden,
        full_logprobs=full if sends_logits else None,
    )


def _logprobs(generator: np.random.Generator, tokens: int) -> np.ndarray:
    return (-4.0 + 0.5 * generator.normal(size=tokens)).astype(np.float32)


def _each(groups: list[RolloutGroup], value: Callable[[int], object]) -> dict:
    return {rollout.rollout_id: value(len(rollout.completion.token_ids)) for group in groups for rollout in group.rollouts}
