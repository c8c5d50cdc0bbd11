"""Amplification against the base model's own answers and the domain's solutions: the counts by hand, what is seen that the first
steps hide, and what is learned rightly and is no sign."""

from __future__ import annotations

import json
import math

import pytest

from services.evaluation.collapse import CollapseWatch
from services.evaluation.collapse.amplification import MAX_REFERENCE_ITEMS, MIN_SOLUTIONS, Amplification
from tests.collapse.recorded import group_of

PLAIN, MARKED = [5, 6], [5, 9]
"""The same first token; 9 is what the base never writes."""


def watch(base, *, steps: int, marked: int, solutions=()) -> CollapseWatch:
    """A stage in whose every step ``marked`` of 40 completions have the mark, from its first step on."""
    found = CollapseWatch()
    found.begin_stage("s", base=base, solutions=solutions)
    groups = [group_of(0, [MARKED] * marked + [PLAIN] * (40 - marked), [r"\boxed{1}"] * marked + ["1"] * (40 - marked))]
    found.raised = [warning for step in range(steps) for warning in found.observe(step, {}, groups).warnings]
    return found


def test_counts_of_the_bases_answers_by_hand():
    found = CollapseWatch()
    found.begin_stage("s", base=[([5, 6, 5], "a, b."), ([5], ",,"), ([7], "")])
    counts = found.state()["counts"]
    # an item counts once in a completion, and pieces also with their number
    assert counts["ngrams_amplified"]["base"] == {"5": 2, "6": 1, "7": 1, "5 6": 1, "6 5": 1, "5 6 5": 1}
    assert counts["format_amplified"]["base"] == {",": 2, ".": 1, ", x2": 1}
    assert counts["ngrams_amplified"]["base_completions"] == 3


def test_lift_and_z_against_the_base_by_hand():
    counts = Amplification()
    counts.base.add([{"x"}] * 2 + [set()] * 98)  # y0 = 2 of n0 = 100
    counts.add([{"x"}] * 30 + [set()] * 20)  # y1 = 30 of n1 = 50
    (found,) = counts.amplified()
    prior = 20.0 * 32 / 150
    delta = math.log((30 + prior) / (70 - 30 - prior)) - math.log((2 + prior) / (120 - 2 - prior))
    assert found.log_odds == pytest.approx(delta) and found.share_base == 0.02
    assert found.z == pytest.approx(delta / math.sqrt(1 / (30 + prior) + 1 / (2 + prior)))
    assert found.lift == pytest.approx(((30 + prior) / 70) / ((2 + prior) / 120))


def test_what_the_stage_began_with_is_seen_against_the_base_and_not_against_the_first_steps():
    base = [(PLAIN, "1")] * 400
    seen = watch(base, steps=20, marked=30).raised
    assert {warning.code for warning in seen} == {"ngrams_amplified", "format_amplified"}
    assert all(warning.evidence["reference"] == "at the base model" and "at the base model" in warning.message for warning in seen)
    texts = {one["item"]: one["share_base"] for warning in seen for one in warning.evidence["amplified"]}
    assert texts["9"] == texts[r"\boxed"] == 0.0
    assert watch(None, steps=20, marked=30).raised == []


def test_what_the_base_writes_as_often_is_not_amplified():
    base = [(MARKED, r"\boxed{1}")] * 300 + [(PLAIN, "1")] * 100
    assert watch(base, steps=20, marked=30).raised == []


def test_a_restored_watch_keeps_the_bases_counts_and_adds_none_of_the_first_steps():
    one = watch([(PLAIN, "1")] * 400, steps=5, marked=30)
    two = CollapseWatch()
    two.restore(json.loads(json.dumps(one.state())))
    groups = [group_of(0, [MARKED] * 40, [r"\boxed{1}"] * 40)]
    for step in range(5, 20):
        assert one.observe(step, {}, groups) == two.observe(step, {}, groups)
    assert two.state()["counts"]["ngrams_amplified"]["base_completions"] == 400


def test_the_weaker_of_the_two_comparisons_counts_by_hand():
    counts = Amplification()
    counts.base.add([{"x"}] * 2 + [set()] * 98)  # 2 of 100
    counts.solutions.add([{"x"}] * 40 + [set()] * 40)  # 40 of 80
    counts.add([{"x"}] * 30 + [set()] * 20)  # 30 of 50
    (found,) = counts.amplified()
    prior = 20.0 * 70 / 130
    delta = math.log((30 + prior) / (70 - 30 - prior)) - math.log((40 + prior) / (100 - 40 - prior))
    assert found.lift == pytest.approx(((30 + prior) / 70) / ((40 + prior) / 100))
    assert found.log_odds == pytest.approx(delta) and found.z == pytest.approx(delta / math.sqrt(1 / (30 + prior) + 1 / (40 + prior)))
    assert (found.share_base, found.share_solutions) == (0.02, 0.5)
    # and the base where the solutions hold it less often
    counts = Amplification()
    counts.base.add([{"x"}] * 40 + [set()] * 40)
    counts.solutions.add([{"x"}] * 2 + [set()] * 98)
    counts.add([{"x"}] * 30 + [set()] * 20)
    (other,) = counts.amplified()
    assert other.lift == pytest.approx(found.lift) and (other.share_base, other.share_solutions) == (0.5, 0.02)


def test_a_format_that_the_solutions_have_is_learned_and_not_amplified():
    base, solutions = [(PLAIN, "1")] * 400, [(MARKED, r"\boxed{1}")] * 300
    assert {warning.code for warning in watch(base, steps=20, marked=30).raised} == {"ngrams_amplified", "format_amplified"}
    assert watch(base, steps=20, marked=30, solutions=solutions).raised == []


def test_a_format_that_neither_has_is_amplified_and_the_words_name_both():
    base, solutions = [(PLAIN, "1")] * 400, [(PLAIN, "1")] * 300
    seen = watch(base, steps=20, marked=30, solutions=solutions).raised
    assert {warning.code for warning in seen} == {"ngrams_amplified", "format_amplified"}
    assert all("at the base model (0.0%) or in the domain's solutions (0.0%)" in warning.message for warning in seen)
    assert all(one["share_solutions"] == 0.0 for warning in seen for one in warning.evidence["amplified"])


def test_a_piece_of_few_solutions_that_every_completion_has_is_amplified():
    base, solutions = [(PLAIN, "1")] * 400, [(MARKED, r"\boxed{1}")] * 10 + [(PLAIN, "1")] * 290
    assert {warning.code for warning in watch(base, steps=20, marked=40, solutions=solutions).raised} >= {"ngrams_amplified"}


def test_a_restored_watch_keeps_the_solutions_and_reads_a_state_without():
    one = watch([(PLAIN, "1")] * 400, steps=5, marked=30, solutions=[(MARKED, r"\boxed{1}")] * 300)
    two = CollapseWatch()
    two.restore(json.loads(json.dumps(one.state())))
    groups = [group_of(0, [MARKED] * 40, [r"\boxed{1}"] * 40)]
    for step in range(5, 20):
        assert one.observe(step, {}, groups) == two.observe(step, {}, groups)
    older = watch([(PLAIN, "1")] * 400, steps=5, marked=30).state()
    for counts in older["counts"].values():
        del counts["solutions"], counts["solutions_completions"]
    three = CollapseWatch()
    three.restore(older)
    assert {found.code for step in range(5, 20) for found in three.observe(step, {}, groups).warnings} == {"ngrams_amplified", "format_amplified"}


def test_too_few_solutions_excuse_nothing():
    """Against so few the prior keeps every lift below the threshold, and both signs would be silent for good."""
    base, few = [(PLAIN, "1")] * 400, [(PLAIN, "1")] * (MIN_SOLUTIONS - 1)
    seen = watch(base, steps=20, marked=40, solutions=few).raised
    assert {warning.code for warning in seen} == {"ngrams_amplified", "format_amplified"}
    assert all("solutions" not in warning.message for warning in seen)
    enough = watch(base, steps=20, marked=40, solutions=[(PLAIN, "1")] * MIN_SOLUTIONS).raised
    assert {warning.code for warning in enough} == {"ngrams_amplified", "format_amplified"}


def test_the_references_are_cut_to_size_before_the_first_step():
    found = CollapseWatch()
    found.begin_stage("s", base=[(PLAIN, "1")], solutions=[(range(start, start + 50), "") for start in range(0, 50 * 300, 50)])
    assert len(found.state()["counts"]["ngrams_amplified"]["solutions"]) == MAX_REFERENCE_ITEMS
