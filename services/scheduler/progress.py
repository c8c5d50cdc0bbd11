"""Where a job stands: a cursor that a checkpoint carries, and the version numbers that follow from it.

Invariant: publication ids only grow, over restarts and attempts too. Their high bits are the incarnation, a number that
the store gives out once per bring-up; their low bits count the publications of this incarnation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

PUBLICATIONS_PER_INCARNATION = 1 << 20


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next thing to do. ``step`` counts the steps of the stage that are done."""

    stage_index: int = 0
    step: int = 0
    global_step: int = 0
    """Steps done over all stages; a given checkpoint that was taken counts as one, so that what is measured of each has its own place."""
    updates: int = 0
    """Optimizer steps applied over all stages; the teacher's version numbers count these."""
    non_finite_in_a_row: int = 0

    def after_step(self, *, applied: int, finite: bool) -> Cursor:
        """``applied``: optimizer steps that were applied to the step's batch; usually one."""
        return replace(
            self,
            step=self.step + 1,
            global_step=self.global_step + 1,
            updates=self.updates + int(applied),
            non_finite_in_a_row=0 if finite else self.non_finite_in_a_row + 1,
        )

    def after_given(self) -> Cursor:
        """A given stage has taken its weights: no step of the stage, no optimizer step."""
        return replace(self, global_step=self.global_step + 1, non_finite_in_a_row=0)

    def next_stage(self) -> Cursor:
        return replace(self, stage_index=self.stage_index + 1, step=0)

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


class Progress:
    """The cursor as it moves, on every rank alike."""

    def __init__(self, cursor: Cursor, *, incarnation: int, checkpoint_every: int):
        self.cursor = cursor
        self._incarnation = incarnation
        self._publications = 0
        self._checkpoint_every = checkpoint_every
        self._committed_step = cursor.global_step

    @property
    def version(self) -> int:
        """The publication that engines hold now."""
        return self._incarnation * PUBLICATIONS_PER_INCARNATION + self._publications

    def next_version(self) -> int:
        self._publications += 1
        return self.version

    def remaining(self, num_steps: int) -> Iterator[int]:
        """Step numbers of this stage that are still to do; ``advance`` must be called for each."""
        while self.cursor.step < num_steps:
            yield self.cursor.step

    def advance(self, *, applied: int, finite: bool) -> None:
        self.cursor = self.cursor.after_step(applied=applied, finite=finite)

    def advance_given(self) -> None:
        self.cursor = self.cursor.after_given()

    def begin_next_stage(self) -> None:
        self.cursor = self.cursor.next_stage()

    @property
    def commit_due(self) -> bool:
        return self.cursor.global_step - self._committed_step >= self._checkpoint_every

    def committed(self) -> None:
        self._committed_step = self.cursor.global_step
