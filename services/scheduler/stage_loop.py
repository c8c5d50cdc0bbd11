"""What every learner rank runs for one stage; reads top to bottom.

Only the lead talks to other actors; ranks meet in ``ranks`` and in the learner's own collectives. No method is named
here: what SDPO, GRPO and every hybrid do differently stands in the stage's composition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from cluster.errors import StageError
from cluster.messages import StepReport
from cluster.spec.job import ResolvedStage
from services.scheduler.phases import Phases
from services.scheduler.progress import Progress
from services.scheduler.ranks import Ranks
from services.scheduler.updates import run_updates

MAX_NON_FINITE_IN_A_ROW = 3


class StopRequested(Exception):
    """The job is to be cancelled or paused; carries the outcome."""

    def __init__(self, outcome: str):
        super().__init__(outcome)
        self.outcome = outcome


class StageLead(Protocol):
    """What the lead does for a stage; see ``services/scheduler/lead.py``."""

    def sample(self, step: int, version: int) -> tuple[list, list]: ...
    def prepare(self, step: int, version: int, looked: list | None) -> list: ...
    def probe_sequences(self): ...
    def check_parity(self, probed, logprobs: list) -> float: ...
    def follow(self, updates: int, snapshot, *, after: int | None = None, ends_batch: bool = True) -> None: ...
    def record(self, report: StepReport, seconds: dict[str, float]) -> str: ...
    def evaluate_during(self, snapshot) -> None: ...


class World:
    """The parts that a stage needs, on this rank; ``lead`` is None on every other rank."""

    def __init__(self, *, ranks: Ranks, learner, publisher, lead, progress: Progress, commit: Callable[[str], None]):
        self.ranks = ranks
        self.learner = learner
        self.publisher = publisher
        self.lead = lead
        self.progress = progress
        self.commit = commit


def run_stage(world: World, stage: ResolvedStage) -> None:
    """Train through the remaining steps of a stage. Raises ``StopRequested`` at a step boundary when asked to stop."""
    ranks, progress = world.ranks, world.progress
    for step in progress.remaining(stage.steps):
        phases = Phases()
        with phases("experience"):
            looked = look_at(world, stage, step, phases) if stage.needs_policy_pass else None
            shards = ranks.scatter_from_lead(lambda step=step, looked=looked: world.lead.prepare(step, progress.version, looked))
        report, applied = run_updates(world, shards, phases, follow_each=stage.composition.follows_every_update)
        before = progress.cursor.updates
        progress.advance(applied=applied, finite=report.finite)
        if report.applied:
            after = progress.cursor.updates - 1 if stage.composition.follows_every_update else before
            publish_and_follow(world, phases, after=after)
        outcome = ranks.from_lead(lambda report=report, phases=phases: world.lead.record(report, phases.seconds))
        if progress.cursor.non_finite_in_a_row >= MAX_NON_FINITE_IN_A_ROW:
            raise StageError(
                f"stage {stage.name}: {MAX_NON_FINITE_IN_A_ROW} steps in a row had a loss or gradient that is not finite",
                reason="non_finite_loss",
            )
        # Before the commit: what is evaluated after it would be missing for good after a stop or a crash.
        ranks.from_lead(lambda: world.lead.evaluate_during(world.publisher.last_snapshot))
        if outcome != "running":
            world.commit("resume")
            raise StopRequested(outcome)
        if progress.commit_due and progress.cursor.step < stage.steps:
            world.commit("resume")


def look_at(world: World, stage: ResolvedStage, step: int, phases: Phases) -> list:
    """The policy's own log-probabilities and entropies of a batch before it is packed; the same on every rank."""
    prompts, completions = world.ranks.from_lead(lambda: world.lead.sample(step, world.progress.version))
    with phases("policy_pass"):
        return world.learner.sequence_scores(prompts, completions, temperature=stage.sampling.temperature, entropies=True)


def publish_and_follow(world: World, phases: Phases, *, follow: bool = True, after: int | None = None) -> None:
    """Hand the learner's weights to the engines, let the teacher follow from update ``after``, prove that all three agree."""
    with phases("publish"):
        publication = world.publisher.publish(world.progress.next_version())
    if follow:
        with phases("follow"):
            world.ranks.from_lead(lambda: world.lead.follow(world.progress.cursor.updates, publication.snapshot, after=after))
    with phases("parity"):
        probe_parity(world)


def probe_parity(world: World) -> None:
    """Engine against learner on fixed prompts; raises ``ParityError`` on every rank above the bound."""
    probed = world.ranks.from_lead(lambda: world.lead.probe_sequences())
    logprobs = world.learner.sequence_logprobs(probed.prompts, probed.completions, temperature=probed.temperature)
    world.ranks.from_lead(lambda: world.lead.check_parity(probed, logprobs))
