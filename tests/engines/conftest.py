"""A real engine with a tied tiny model, shared by the whole session."""

from __future__ import annotations

import pytest

from tests.tiny_models import EngineProcess, PlainLearner, tiny_engine


@pytest.fixture(scope="session")
def reference() -> PlainLearner:
    """The same weights in Transformers, float32."""
    return PlainLearner(tied=True)


@pytest.fixture
def engine(reference: PlainLearner, tmp_path) -> EngineProcess:
    return tiny_engine(tied=True)
