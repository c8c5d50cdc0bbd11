"""What the lead makes of a step: who is asked for what, and that every score stays with its own rollout."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.errors import StageError, TeacherError
from cluster.messages import Completion, PrivilegedContext, TeacherScores, Verdict, token_digest
from cluster.spec.job import JobSpec
from rollout.chat import ChatFormat
from services.scheduler.batches import Batches

PEBBLE = Path(__file__).resolve().parents[2] / "deploy" / "models" / "pebble"
HIDDEN, SUPPORT = 4, 3


class Engines:
    """Answers every request with completions of three fixed tokens, and a recorded top-3."""

    def __init__(self):
        self.sampling = []

    def generate(self, requests, sampling):
        self.sampling.append(sampling)
        ids = np.array([45, 46, 47], dtype=np.int32)
        support = np.tile(np.array([45, 48, 49], dtype=np.int32), (3, 1)) if sampling.support_k else None
        values = np.full((3, SUPPORT), -1.0, np.float32) if sampling.support_k else None
        return [
            tuple(
                Completion(
                    token_ids=ids, logprobs=np.full(3, -1.0, np.float32), finish_reason="stop", policy_version=1,
                    support_ids=support, support_logprobs=values,
                )
                for _ in range(request.num_completions)
            )
            for request in requests
        ]


class Verifiers:
    """Every second completion passes; the first ``failures`` could not be judged."""

    def __init__(self, failures: int = 0):
        self.failures = failures

    def verify(self, tasks):
        bad = Verdict(score=0.0, passed=False, error="the verifier raised KeyError: 'x'")
        judged = [Verdict(score=float(index % 2), passed=bool(index % 2)) for index in range(len(tasks))]
        return [bad if index < self.failures else verdict for index, verdict in enumerate(judged)]


class Teacher:
    """Scores whatever it is asked; ``calls`` are the keyword arguments and the requests."""

    def __init__(self, payload: str = "hidden"):
        self.calls, self.references, self.heads, self.payload = [], [], 0, payload

    def full_payload(self, num_tokens):
        return self.payload

    def head(self):
        self.heads += 1
        return np.ones((64, HIDDEN), np.float32)

    def score(self, requests, **options):
        self.calls.append((requests, options))
        return [self._scores(request, hidden=np.ones((3, HIDDEN), np.float32) if options["full"] == "hidden" else None) for request in requests]

    def reference_logprobs(self, requests, *, temperature):
        self.references.append(requests)
        return [self._scores(request) for request in requests]

    def _scores(self, request, hidden=None):
        support = None if request.support_ids is None else np.full(request.support_ids.shape, -1.0, np.float32)
        return TeacherScores(
            rollout_id=request.rollout_id, problem_id=request.problem_id, teacher_version=7,
            completion_digest=token_digest(request.completion_token_ids), logprobs=np.full(3, -0.5, np.float32),
            support_logprobs=support, hidden=hidden,
        )


def batches(method: dict, *, teacher=None, verifiers=None, num_ranks=1, **stage) -> Batches:
    job = JobSpec.model_validate(
        {
            "name": "j",
            "model": {"path": str(PEBBLE)},
            "stages": [
                {
                    "name": "sums", "domain": {"kind": "arithmetic", "digits": 2}, "method": method, "problems_per_step": 4,
                    "rollouts_per_problem": 2, "sampling": {"max_tokens": 8}, **stage,
                }
            ],
        }
    )
    parts = SimpleNamespace(chat=ChatFormat(str(PEBBLE)), pool=Engines(), verifiers=verifiers or Verifiers(), teacher=teacher or Teacher())
    return Batches(job, job.resolved_stages()[0], parts, num_ranks=num_ranks)


@pytest.mark.parametrize(("failures", "fails"), [(1, False), (2, True)])
def test_more_than_a_fifth_of_failed_verifications_fails_the_stage(failures, fails):
    made = batches({"recipe": "grpo"}, verifiers=Verifiers(failures))
    if not fails:
        batch = made.sample(0, 1)
        assert sum(verdict.error is not None for of_group in batch.verdicts for verdict in of_group) == 1
        return
    with pytest.raises(StageError, match=r"2 of 8 completions.*KeyError") as raised:
        made.sample(0, 1)
    assert raised.value.reason == "verifier_failures"


def test_a_grpo_step_asks_no_teacher_and_every_rank_gets_a_shard():
    made = batches({"recipe": "grpo"}, num_ranks=2)
    batch = made.build(made.sample(0, 1), updates=7)
    assert made._parts.teacher.calls == []
    assert len(batch.shards) == 2 and all(len(of_rank) == 1 for of_rank in batch.shards)
    assert batch.metrics["rollout/score_mean"] == 0.5
    assert set(batch.phases.seconds) == {"rollout", "verify", "pack"}


def test_updates_of_one_batch_are_dealt_out_by_groups():
    made = batches({"recipe": "grpo"}, updates_per_batch=2)
    (of_rank,) = made.build(made.sample(0, 1), updates=7).shards
    sizes = [sum(len(part) for part in shard.micro_batches) for shard in of_rank]
    assert sizes == [4, 4]
    seen = [sample.sample_id for shard in of_rank for part in shard.micro_batches for sample in part]
    assert len(set(seen)) == 8


def test_a_context_that_was_swapped_is_seen_where_scores_meet_rollouts():
    made = batches({"recipe": "sdpo"})
    batch = made.sample(0, 1)
    foreign = PrivilegedContext(problem_id="sums/train/9", kind="x", teacher_prompt_token_ids=np.array([1], np.int32))
    made._contexts = SimpleNamespace(build=lambda groups, verdicts, step: [[foreign] * len(g.rollouts) for g in groups], metrics={})
    with pytest.raises(TeacherError) as raised:
        made.build(batch, updates=7)
    assert raised.value.reason == "context_mismatch"


def test_the_teachers_head_is_fetched_once_for_each_version_of_the_teacher():
    teacher = Teacher()
    made = batches({"recipe": "sdpo"}, teacher=teacher)
    for updates in (7, 7):
        batch = made.build(made.sample(0, 1), updates=updates)
    assert teacher.heads == 1 and batch.shards[0][0].teacher_head.shape == (64, HIDDEN)


def test_rollout_supports_reach_the_teacher_with_the_sampled_token_joined():
    teacher = Teacher()
    method = {
        "recipe": "opd_topk", "teacher": {"kind": "frozen"}, "k": SUPPORT, "support_from": "rollout", "join_sampled": True,
        "mask_special_tokens": False,
    }
    made = batches(method, teacher=teacher)
    batch = made.build(made.sample(0, 1), updates=7)
    ((requests, options),) = teacher.calls
    assert made._parts.pool.sampling[0].support_k == SUPPORT and options["top_k"] == 0 and options["full"] == "none"
    assert requests[0].support_ids.tolist() == [[45, 48, 49, 45], [45, 48, 49, 46], [45, 48, 49, 47]]
    sample = batch.shards[0][0].micro_batches[0][0]
    assert sample.support_ids.shape == sample.teacher_support_logprobs.shape == (3, SUPPORT + 1)


def test_a_reference_reads_the_policys_own_prompt_and_its_numbers_reach_the_samples():
    teacher = Teacher()
    made = batches({"recipe": "grpo", "reference_coefficient": 0.1}, teacher=teacher)
    batch = made.build(made.sample(0, 1), updates=7)
    assert teacher.calls == [] and len(teacher.references[0]) == 8
    rollout = batch.groups[0].rollouts[0]
    assert teacher.references[0][0].prompt_token_ids.tolist() == rollout.prompt_token_ids.tolist()
    sample = batch.shards[0][0].micro_batches[0][0]
    assert sample.reference_logprobs.tolist() == [-0.5] * 3


def test_what_the_learner_saw_of_the_policy_reaches_the_masks():
    made = batches({"recipe": "sdft", "top_entropy": 0.33, "skip_first_tokens": 0})
    batch = made.sample(0, 1)
    looked = {
        rollout.rollout_id: SimpleNamespace(logprobs=np.full(3, -1.0, np.float32), entropies=np.array([0.1, 0.9, 0.2], np.float32))
        for rollout in batch.rollouts
    }
    made.build(batch, updates=7, policy_scores=looked)
    sample = batch.shards[0][0].micro_batches[0][0]
    assert np.flatnonzero(sample.term_weights["distillation"]).tolist() == [1]
