"""The parts against hand-computed values."""

from __future__ import annotations

import math

import pytest

from services.evaluation.collapse.amplification import FADE, PRIOR, Amplification
from services.evaluation.collapse.episodes import CLEAR_STEPS, RAISE_STEPS, Episode
from services.evaluation.collapse.markers import marker_counts
from services.evaluation.collapse.repetition import distinct, mean_repeated_share, repeated_share
from services.evaluation.collapse.texts import format_items, ngram_items
from services.evaluation.collapse.tracks import Track


def test_repeated_share_by_hand():
    # 1212121 has the 2-grams 12 21 12 21 12 21: two of six are new
    assert repeated_share([1, 2, 1, 2, 1, 2, 1], 2) == pytest.approx(4 / 6)
    assert repeated_share([1, 2, 3, 4, 5], 2) == 0.0
    assert repeated_share([1, 2, 3, 4], 4) is None  # one 4-gram alone repeats nothing
    assert mean_repeated_share([[1, 1, 1], [1, 2, 3], [1]], 2) == pytest.approx(0.25)


def test_distinct_is_over_all_completions():
    assert distinct([[1, 2, 3], [1, 2, 4]], 2) == pytest.approx(3 / 4)
    assert distinct([[1]], 2) is None


def test_markers():
    counts = marker_counts(["Wait, let me try again. Maybe it is 3; I think so.", "waiting for a maybel"])
    assert counts == {"hedging": 2, "self_correction": 2}


def test_format_items():
    items = format_items(r"\boxed{1} \boxed{2} \boxed{3} <think>")
    assert {r"\boxed", r"\boxed x2", "{", "}", "{ x2", "} x2", "<think>"} == items
    assert ngram_items([7, 8, 7]) == {"7", "8", "7 8", "8 7", "7 8 7"}


def test_log_odds_by_hand():
    counts = Amplification()
    counts.base.add([{"a"}] * 10 + [{"b"}] * 90)
    counts.add([{"a"}] * 50 + [{"b"}] * 50)
    [found] = counts.amplified()
    prior = PRIOR * 60 / 200
    delta = math.log((50 + prior) / (100 + PRIOR - 50 - prior)) - math.log((10 + prior) / (100 + PRIOR - 10 - prior))
    assert found.item == "a" and (found.share_now, found.share_base) == (0.5, 0.1)
    assert found.log_odds == pytest.approx(delta)
    assert found.z == pytest.approx(delta / math.sqrt(1 / 56 + 1 / 16))
    assert found.lift == pytest.approx((56 / 120) / (16 / 120))


def test_an_item_of_all_completions_is_not_amplified_whatever_the_counts():
    counts = Amplification()
    counts.base.add([{"end"}] * 100)
    for _ in range(30):
        counts.add([{"end"}] * 100)
    assert all(one.lift <= 1.0 + 1e-12 for one in counts.amplified())


def test_counts_fade():
    counts = Amplification()
    counts.base.add([{"b"}] * 100)
    counts.add([{"a"}] * 10)
    counts.add([{"b"}] * 10)
    shares = {one.item: one.share_now for one in counts.amplified()}
    assert shares == {"a": pytest.approx(10 * FADE / (10 + 10 * FADE))}


def test_an_episode_is_raised_once_and_cleared_once():
    episode = Episode()
    levels = [1.2, 0.9] + [1.0] * RAISE_STEPS + [0.9] * 30 + [0.7] * (CLEAR_STEPS - 1) + [0.85] + [0.7] * CLEAR_STEPS + [None]
    changes = {step: change for step, level in enumerate(levels) if (change := episode.advance(level, step)) is not None}
    assert changes == {1 + RAISE_STEPS: "raised", len(levels) - 2: "cleared"}


def test_a_track_of_a_constant_with_one_wild_step():
    track = Track()
    for step in range(20):
        track.observe(step, 1000.0 if step == 15 else 3.0)
    track.observe(20, math.nan)
    assert (track.start, track.now, track.highest, track.sigma) == (3.0, 3.0, 3.0, 0.0)


def test_a_track_is_ready_where_half_of_the_steps_had_a_value():
    track = Track()
    for step in range(0, 20, 2):
        track.observe(step, 1.0)
    assert track.is_ready(18) and not track.is_ready(23)
