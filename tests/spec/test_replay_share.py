"""A share of a stage's problems from earlier stages' domains: whose, and how much of each."""

from __future__ import annotations

import pytest

from cluster.spec.job import JobSpec

SUMS, WORDS = {"kind": "arithmetic"}, {"kind": "strings", "operation": "sort"}


def domains_of(*stages: dict) -> list[tuple[str, float]]:
    """(name, share of the problems) of the last stage."""
    filled = [{"method": {"recipe": "grpo"}} | stage for stage in stages]
    job = JobSpec.model_validate({"name": "x", "model": {"path": "m"}, "stages": filled})
    parts = job.resolved_stages()[-1].domains
    total = sum(part.weight for part in parts)
    return [(part.name, part.weight / total) for part in parts]


def test_all_earlier_domains_share_the_replayed_part_evenly():
    first, second = {"name": "a", "domain": SUMS}, {"name": "b", "domain": WORDS}
    found = domains_of(first, second, {"name": "c", "domain": {"kind": "tool_call"}, "replay": {"share": 0.2}})
    assert found == [("c", pytest.approx(0.8)), ("a", pytest.approx(0.1)), ("b", pytest.approx(0.1))]


def test_only_the_named_stages_are_replayed_and_own_weights_keep_their_ratio():
    first, second = {"name": "a", "domain": SUMS}, {"name": "b", "domain": WORDS}
    own = [{"name": "d", "domain": {"kind": "tool_call"}, "weight": 3.0}, {"name": "e", "domain": {"kind": "arithmetic", "digits": 3}, "weight": 1.0}]
    found = domains_of(first, second, {"name": "c", "domains": own, "replay": {"share": 0.5, "stages": ["b"]}})
    assert found == [("d", pytest.approx(0.375)), ("e", pytest.approx(0.125)), ("b", pytest.approx(0.5))]


def test_a_domain_that_the_stage_trains_on_is_not_replayed_too():
    first = {"name": "a", "domain": SUMS}
    found = domains_of(first, {"name": "c", "domains": [{"name": "a", "domain": SUMS}], "replay": {"share": 0.5}})
    assert found == [("a", 1.0)]
