"""Cursor arithmetic and publication ids."""

from __future__ import annotations

from services.scheduler.progress import Cursor, Progress


def test_remaining_starts_at_the_cursor_and_ends_at_the_budget():
    progress = Progress(Cursor(stage_index=1, step=3, global_step=13, updates=12), incarnation=1, checkpoint_every=10)
    seen = []
    for step in progress.remaining(6):
        seen.append(step)
        progress.advance(applied=step != 4, finite=True)
    assert seen == [3, 4, 5]
    assert progress.cursor == Cursor(stage_index=1, step=6, global_step=16, updates=14)


def test_a_given_checkpoint_counts_as_one_global_step_and_as_no_step_of_its_stage():
    progress = Progress(Cursor(stage_index=1, step=0, global_step=13, updates=12, non_finite_in_a_row=1), incarnation=1, checkpoint_every=10)
    progress.advance_given()
    assert progress.cursor == Cursor(stage_index=1, step=0, global_step=14, updates=12)
    progress.begin_next_stage()
    assert progress.cursor == Cursor(stage_index=2, step=0, global_step=14, updates=12)


def test_publication_ids_only_grow_over_incarnations():
    first = Progress(Cursor(), incarnation=1, checkpoint_every=10)
    ids = [first.next_version() for _ in range(5)]
    second = Progress(Cursor(), incarnation=2, checkpoint_every=10)
    ids += [second.next_version() for _ in range(3)]
    assert ids == sorted(set(ids)) and len(ids) == 8


def test_commit_is_due_by_steps_since_the_last_commit():
    progress = Progress(Cursor(global_step=20), incarnation=1, checkpoint_every=3)
    due = []
    for _ in range(7):
        progress.advance(applied=True, finite=True)
        due.append(progress.commit_due)
        if progress.commit_due:
            progress.committed()
    assert due == [False, False, True, False, False, True, False]


def test_steps_that_are_not_finite_are_counted_in_a_row():
    cursor = Cursor()
    for finite in (False, False, True, False):
        cursor = cursor.after_step(applied=finite, finite=finite)
    assert cursor.non_finite_in_a_row == 1
    assert cursor.updates == 1 and cursor.global_step == 4
