"""The lead's own rules: how many verifier failures a step may have, and what a boundary means for the teacher."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from cluster.errors import StageError
from cluster.messages import Completion, Problem, Rollout, RolloutGroup, Verdict
from services.scheduler.lead import Lead, LeadParts
from services.scheduler.progress import Cursor, Progress


class Recorder:
    """Answers every call and remembers it."""

    def __init__(self, **answers):
        self.calls = []
        self._answers = answers

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            answer = self._answers.get(name)
            return answer(*args) if callable(answer) else answer

        return call


def lead_with(**parts) -> Lead:
    names = LeadParts.__slots__
    job = SimpleNamespace(seed=0, compute=SimpleNamespace(micro_batch_tokens=64), evaluation=SimpleNamespace(every_steps=2))
    progress = Progress(Cursor(updates=7), incarnation=1, checkpoint_every=5)
    return Lead(job, LeadParts(**{name: parts.get(name, Recorder()) for name in names}), progress, num_ranks=1)


def group_of(size: int) -> RolloutGroup:
    problem = Problem(problem_id="d/train/0", domain="d", messages=({"role": "user", "content": "?"},), solution="1")
    ids = np.array([1], dtype=np.int32)
    completion = Completion(token_ids=ids, logprobs=np.zeros(1, np.float32), finish_reason="stop", policy_version=1)
    rollouts = tuple(Rollout(rollout_id=str(i), problem_id=problem.problem_id, prompt_token_ids=ids, completion=completion, text="1") for i in range(size))
    return RolloutGroup(problem=problem, rollouts=rollouts)


@pytest.mark.parametrize(("failures", "fails"), [(2, False), (3, True)])
def test_more_than_a_fifth_of_failed_verifications_fails_the_stage(failures, fails):
    good, bad = Verdict(score=1.0, passed=True), Verdict(score=0.0, passed=False, error="the verifier raised KeyError: 'x'")
    lead = lead_with(verifiers=Recorder(verify=lambda tasks: [bad] * failures + [good] * (len(tasks) - failures)))
    lead._stage, lead._domains = SimpleNamespace(name="math"), {"d": None}
    if not fails:
        assert sum(verdict.error is not None for verdict in lead._verify([group_of(10)])[0]) == failures
        return
    with pytest.raises(StageError, match=r"3 of 10 completions.*KeyError") as raised:
        lead._verify([group_of(10)])
    assert raised.value.reason == "verifier_failures"


@pytest.mark.parametrize(
    ("boundary", "resumed", "anchor"), [("keep", False, "keep"), ("re_anchor", False, "policy"), ("reset", False, "base"), ("reset", True, "resume")]
)
def test_a_stage_boundary_anchors_the_teacher_as_the_job_file_says(boundary, resumed, anchor):
    teacher = Recorder()
    lead = lead_with(teacher=teacher)
    stage = SimpleNamespace(boundary=SimpleNamespace(teacher=boundary), composition=SimpleNamespace(teacher="spec"))
    lead._anchor_teacher(stage, resumed=resumed, snapshot="file")
    assert teacher.calls == [("begin_stage", ("spec",), {"anchor": anchor, "snapshot": "file", "update": 7})]


def test_contexts_that_were_swapped_reach_the_packing_check_under_their_own_problem():
    """The request carries the context's problem, so a swap is seen where scores meet rollouts."""
    scored = []
    lead = lead_with(teacher=Recorder(score=lambda requests: scored.extend(requests) or []))
    lead._stage = SimpleNamespace(
        composition=SimpleNamespace(top_k=None, needs_hidden=False), sampling=SimpleNamespace(temperature=1.0)
    )
    foreign = SimpleNamespace(problem_id="d/train/9", teacher_prompt_token_ids=np.array([1], np.int32))
    lead._score([group_of(2)], [[foreign, None]])
    assert [request.problem_id for request in scored] == ["d/train/9"]
