"""The base model of a study is scored once: the next member takes the scores from the store and asks its engine nothing."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.messages import Problem, Verdict
from cluster.spec.job import JobSpec
from cluster.spec.study import StudySpec, expand
from rollout.engines.base import EngineSampling
from rollout.engines.scripted import ScriptedEngine
from services.evaluation.evaluator import Evaluator
from services.jobs.store import JobStore
from services.jobs.study_rows import NewMember
from services.scheduler.attempt_calls import AttemptCalls
from services.scheduler.evaluations import Evaluations
from services.tracking.log import RunLog, read_metrics

EOS = 99
STAGE = {"domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}, "steps": 2}
STUDY = {
    "name": "s",
    "base": {"name": "base", "model": {"path": "m"}, "stages": [{"name": "sums", **STAGE}]},
    "arms": [{"name": "a"}, {"name": "b", "set": {"defaults.problems_per_step": 4}}, {"name": "c", "set": {"defaults.problems_per_step": 2}}],
}


class Numbers:
    """Problem i asks for i; the engine below answers even ones rightly."""

    def size(self, split):
        return None

    def problem(self, split, index):
        return Problem(problem_id=f"sums/{index}", domain="sums", messages=({"role": "user", "content": str(index)},), solution=str(index))


class Chat:
    def prompt_token_ids(self, messages):
        return np.array([int(messages[-1]["content"])], dtype=np.int32)

    def decode(self, token_ids):
        return str(token_ids[0])


class Verifiers:
    """The first ``num_failing`` verdicts are failures of the verifier."""

    def __init__(self, num_failing=0):
        self._num_failing = num_failing

    def verify(self, tasks):
        found = [Verdict(score=float(text == problem.solution), passed=text == problem.solution) for _, problem, text in tasks]
        return [Verdict(score=0.0, passed=False, error="timeout")] * self._num_failing + found[self._num_failing :]


class Counting(ScriptedEngine):
    def __init__(self):
        super().__init__(lambda prompt, seed: [int(prompt[0]) if prompt[0] % 2 == 0 else 0], eos_token_id=EOS)
        self.asked = 0

    def generate(self, requests, sampling):
        self.asked += len(requests)
        return super().generate(requests, sampling)


class Link:
    """The calls of one attempt, without Ray between."""

    def __init__(self, calls, attempt_id):
        self._calls, self._attempt_id = calls, attempt_id

    def call(self, method, *args, **kwargs):
        return getattr(self._calls, method)(self._attempt_id, *args, **kwargs)


@pytest.fixture
def store(tmp_path):
    store = JobStore(f"sqlite:///{tmp_path / 'store.db'}")
    store.migrate()
    yield store
    store.close()


def _members(store, **resolved):
    study = StudySpec.model_validate(STUDY)
    members = [
        NewMember(arm=m.arm, order=m.order, seed=m.seed, digest=m.digest, spec=JobSpec.model_validate(m.document), resolved={"model_sha256": "f" * 64}, record=None)
        for m in expand(study)
    ]
    record, _ = store.create_study(study, members, spec_hash="h")
    return store.study_members(record.id)


def _score_base(store, job_id, folder, *, seed=7, measured_on="cpu/float32", num_failing=0):
    """Row 0 of a job; the number of problems that its engine was asked."""
    epoch = store.acquire_lease("me", 60.0)
    attempt = store.start_attempt(job_id, epoch=epoch)
    store.release_lease("me", epoch)
    folder.mkdir()
    engine, log = Counting(), RunLog(folder)
    evaluator = Evaluator(engine, Verifiers(num_failing), Chat(), {"sums": Numbers()}, {"sums": 8}, EngineSampling(temperature=1.0, top_p=1.0, max_tokens=4), seed)
    evaluations = Evaluations(evaluator, Link(AttemptCalls(store), attempt.id), log, measured_on=measured_on)
    evaluations.boundary(0, None, 0)
    return engine.asked


def test_the_second_member_takes_the_scores_of_the_first(store, tmp_path):
    first, second, _ = _members(store)
    assert _score_base(store, first.job_id, tmp_path / "one") == 8
    assert _score_base(store, second.job_id, tmp_path / "two") == 0
    theirs, ours = (store.list_evaluations(member.job_id)[0] for member in (first, second))
    assert (ours.mean, ours.scores, ours.passed, ours.problems_digest) == (theirs.mean, theirs.scores, theirs.passed, theirs.problems_digest)
    assert ours.mean == 0.5
    shared = store.list_events(second.job_id, kinds=["evaluation.shared"])
    assert [(event.data["domain"], event.data["job"]) for event in shared] == [("sums", first.job_id)]
    assert [point["value"] for point in read_metrics(tmp_path / "two", key="eval/sums/score")] == [0.5]


def test_an_evaluation_that_falls_is_an_event_of_the_job(store, tmp_path):
    """A policy that was right of half of 64 problems and is right of none, inside the stage and at its end."""
    job_id = _members(store)[0].job_id
    epoch = store.acquire_lease("me", 60.0)
    attempt = store.start_attempt(job_id, epoch=epoch)
    link, log = Link(AttemptCalls(store), attempt.id), RunLog(tmp_path)
    stage = JobSpec.model_validate(store.get_job(job_id).spec).resolved_stages()[0]

    def evaluations(wrong_from: int) -> Evaluations:
        engine = ScriptedEngine(lambda prompt, seed: [int(prompt[0]) if prompt[0] % 2 == 0 and prompt[0] < wrong_from else 97], eos_token_id=EOS)
        evaluator = Evaluator(engine, Verifiers(), Chat(), {"sums": Numbers()}, {"sums": 64}, EngineSampling(temperature=1.0, top_p=1.0, max_tokens=4), 7)
        return Evaluations(evaluator, link, log)

    evaluations(64).boundary(0, None, 0)
    evaluations(64).during(stage, 1, 1)
    assert store.list_events(job_id, kinds=["collapse.warning"]) == []
    evaluations(0).boundary(1, stage, 2)
    events = store.list_events(job_id, kinds=["collapse.warning"])
    assert [(event.data["code"], event.stage, event.data["step"]) for event in events] == [("domain_lost", "sums", 2), ("evaluation_falls", "sums", 2)]
    assert events[0].data["evidence"]["domains"]["sums"] == {"score_now": 0.0, "score_reference": 0.5, "score_best": 0.5, "num_problems": 64}


@pytest.mark.parametrize("change", [{"seed": 8}, {"measured_on": "cuda/bfloat16"}])
def test_other_problems_and_other_devices_are_scored_anew(store, tmp_path, change):
    first, second, _ = _members(store)
    _score_base(store, first.job_id, tmp_path / "one")
    assert _score_base(store, second.job_id, tmp_path / "two", **change) == 8
    assert store.list_events(second.job_id, kinds=["evaluation.shared"]) == []


def test_scores_with_failures_of_the_verifier_are_not_shared_and_the_next_whole_ones_are(store, tmp_path):
    members = _members(store)
    asked = [_score_base(store, member.job_id, tmp_path / member.arm, num_failing=failing) for member, failing in zip(members, (1, 0, 0), strict=True)]
    assert asked == [8, 8, 0]
    assert [store.list_evaluations(member.job_id)[0].mean for member in members] == [0.375, 0.5, 0.5]
    (shared,) = store.list_events(members[2].job_id, kinds=["evaluation.shared"])
    assert shared.data["job"] == members[1].job_id
    completed = [store.list_events(member.job_id, kinds=["evaluation.completed"])[0] for member in members[:2]]
    assert [event.data["verifier_errors"] for event in completed] == [1, 0]
