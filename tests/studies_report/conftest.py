"""A study of two arms and its simulated records."""

from __future__ import annotations

import pytest

from tests.studies_report.made_records import COMPARISONS, HYPOTHESES, made_study, simulated_records


@pytest.fixture(scope="session")
def small_study():
    return made_study(arms=2, orders=2, seeds=3, stages=3, hypotheses=HYPOTHESES, comparisons=COMPARISONS)


@pytest.fixture(scope="session")
def small_records(small_study):
    return simulated_records(small_study)
