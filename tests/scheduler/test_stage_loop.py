"""The stage loop over parts that write down what they were asked, in order."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster.errors import ParityError, StageError
from cluster.messages import StepReport
from services.scheduler.phases import Phases
from services.scheduler.progress import Cursor, Progress
from services.scheduler.ranks import Ranks
from services.scheduler.stage_loop import StopRequested, World, publish_and_follow, run_stage
from services.scheduler.updates import merged


def stage_of(steps: int, *, follow_each: bool = False, policy_pass: bool = False):
    composition = SimpleNamespace(follows_every_update=follow_each)
    sampling = SimpleNamespace(temperature=1.0)
    return SimpleNamespace(name="s", steps=steps, composition=composition, needs_policy_pass=policy_pass, sampling=sampling)


STAGE = stage_of(5)


class Parts:
    """Learner, publisher and lead in one; ``calls`` is what happened."""

    def __init__(self, *, reports=None, stop_after=None, parity=None, updates=1):
        self.calls: list[str] = []
        self._updates = updates
        self._reports = iter(reports or [])
        self._stop_after = stop_after
        self._parity = parity
        self.recorded = 0

    def sample(self, step, version):
        self.calls.append(f"sample {step}")
        return ["prompt"], ["completion"]

    def sequence_scores(self, prompts, completions, *, temperature, entropies):
        assert (prompts, completions, entropies) == (["prompt"], ["completion"], True)
        return ["scores"]

    def prepare(self, step, version, looked):
        self.calls.append(f"prepare {step} from publication {version & 0xFFFFF}" + (f" with {looked}" if looked else ""))
        return [("shard",) * self._updates]

    def snapshot(self, version):
        self.calls.append(f"snapshot {version & 0xFFFFF}")
        return "snapshot"

    def step(self, shard):
        self.calls.append("step")
        return next(self._reports, report())

    def publish(self, version):
        self.calls.append(f"publish {version & 0xFFFFF}")
        return SimpleNamespace(version=version, snapshot="publication")

    def follow(self, updates, snapshot, *, after=None, ends_batch=True):
        self.calls.append(f"follow {updates} after {after} from {snapshot}" + ("" if ends_batch else ", more to come"))

    def probe_sequences(self):
        return SimpleNamespace(prompts=[], completions=[], temperature=1.0)

    def sequence_logprobs(self, prompts, completions, *, temperature):
        return []

    def check_parity(self, probed, logprobs):
        self.calls.append("parity")
        if self._parity is not None:
            raise self._parity
        return 0.0

    def record(self, step_report, seconds):
        self.recorded += 1
        return "paused" if self.recorded == self._stop_after else "running"

    last_snapshot = "newest"

    def evaluate_during(self, snapshot):
        assert snapshot == "newest"
        self.calls.append("evaluate")

    def commit(self, kind):
        self.calls.append(f"commit {kind}")
        self.progress.committed()


def report(*, applied=True, finite=True):
    return StepReport(loss=0.5, gradient_norm=1.0, applied=applied, finite=finite, metrics={})


def world_of(parts: Parts, cursor=None) -> World:
    parts.progress = Progress(cursor or Cursor(), incarnation=1, checkpoint_every=2)
    return World(ranks=Ranks(0, 1), learner=parts, publisher=parts, lead=parts, progress=parts.progress, commit=parts.commit)


def test_a_step_is_prepared_from_the_newest_publication_and_checked_after_the_next():
    parts = Parts()
    run_stage(world_of(parts), stage_of(1))
    assert parts.calls == ["prepare 0 from publication 0", "step", "publish 1", "follow 1 after 0 from publication", "parity", "evaluate"]


def test_checkpoints_come_every_interval_and_the_stage_end_is_left_to_its_own_commit():
    parts = Parts()
    run_stage(world_of(parts), stage_of(4))
    assert [call for call in parts.calls if call.startswith("commit")] == ["commit resume"]
    assert parts.calls.index("commit resume") == parts.calls.index("prepare 2 from publication 2") - 1


def test_a_step_that_changed_nothing_is_not_published_and_the_teacher_does_not_follow():
    parts = Parts(reports=[report(applied=False)])
    world = world_of(parts)
    run_stage(world, stage_of(2))
    assert [call for call in parts.calls if call.startswith(("publish", "follow"))] == ["publish 1", "follow 1 after 0 from publication"]
    assert world.progress.cursor.updates == 1 and world.progress.cursor.global_step == 2


def test_three_steps_in_a_row_that_are_not_finite_fail_the_stage():
    bad = report(applied=False, finite=False)
    with pytest.raises(StageError) as raised:
        run_stage(world_of(Parts(reports=[bad, bad, report(), bad, bad, bad])), stage_of(9))
    assert raised.value.reason == "non_finite_loss"
    parts = Parts(reports=[bad, bad, report(), bad, bad])
    run_stage(world_of(parts), STAGE)
    assert parts.recorded == 5


def test_a_request_to_stop_is_met_at_the_step_boundary_with_a_checkpoint():
    parts = Parts(stop_after=3)
    world = world_of(parts)
    with pytest.raises(StopRequested) as raised:
        run_stage(world, STAGE)
    assert raised.value.outcome == "paused"
    assert parts.calls[-1] == "commit resume" and world.progress.cursor.step == 3


def test_a_parity_failure_stops_the_step_before_anything_more_is_generated():
    parts = Parts(parity=ParityError("they differ"))
    with pytest.raises(ParityError):
        run_stage(world_of(parts), STAGE)
    assert sum(call.startswith("prepare") for call in parts.calls) == 1


def test_a_resumed_stage_goes_on_where_the_cursor_stands():
    parts = Parts()
    world = world_of(parts, Cursor(step=3, global_step=13, updates=12))
    publish_and_follow(world, Phases(), follow=False)
    run_stage(world, STAGE)
    assert parts.calls[:3] == ["publish 1", "parity", "prepare 3 from publication 1"]
    assert [call[:9] for call in parts.calls if call.startswith("follow")] == ["follow 13", "follow 14"]


def test_a_batch_dealt_out_to_several_updates_is_published_once_and_followed_once():
    parts = Parts(updates=3)
    world = world_of(parts)
    run_stage(world, stage_of(1))
    assert parts.calls == [
        "prepare 0 from publication 0", "step", "step", "step", "publish 1", "follow 3 after 0 from publication", "parity", "evaluate",
    ]
    assert world.progress.cursor.updates == 3 and world.progress.cursor.step == 1


def test_a_teacher_that_follows_every_update_sees_the_weights_of_each():
    parts = Parts(updates=3, reports=[report(), report(applied=False), report()])
    world = world_of(parts)
    run_stage(world, stage_of(1, follow_each=True))
    assert parts.calls == [
        "prepare 0 from publication 0", "step", "snapshot 1", "follow 1 after 0 from snapshot, more to come", "step", "step",
        "publish 2", "follow 2 after 1 from publication", "parity", "evaluate",
    ]


def test_a_stage_that_must_know_the_policy_first_looks_at_the_batch_before_it_is_packed():
    parts = Parts()
    run_stage(world_of(parts), stage_of(1, policy_pass=True))
    assert parts.calls[:3] == ["sample 0", "prepare 0 from publication 0 with ['scores']", "step"]


def test_reports_of_several_updates_are_one():
    first = StepReport(loss=1.0, gradient_norm=2.0, applied=True, finite=True, metrics={"a": 1.0, "rows/live": 5.0, "x_max": 1.0})
    second = StepReport(loss=3.0, gradient_norm=4.0, applied=False, finite=False, metrics={"a": 3.0, "rows/live": 7.0, "x_max": 0.5})
    both = merged([first, second])
    assert (both.loss, both.gradient_norm, both.applied, both.finite) == (2.0, 3.0, True, False)
    assert both.metrics == {"a": 2.0, "rows/live": 12.0, "x_max": 1.0, "step/updates_applied": 1.0}


def test_an_update_without_a_live_sample_does_not_water_the_report_down():
    full = StepReport(loss=2.0, gradient_norm=4.0, applied=True, finite=True, metrics={"a": 1.0, "samples/live": 3.0})
    empty = StepReport(loss=0.0, gradient_norm=0.0, applied=False, finite=True, metrics={"a": 0.0, "samples/live": 0.0})
    both = merged([empty, full])
    assert (both.loss, both.gradient_norm, both.applied) == (2.0, 4.0, True)
    assert both.metrics == {"a": 1.0, "samples/live": 3.0, "step/updates_applied": 1.0}
