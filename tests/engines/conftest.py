"""A real engine with a tied tiny model, shared by the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.weights.publisher import Publisher
from tests.tiny_models import DirectClient, EngineProcess, PlainLearner, tiny_engine

VERSION = 7


@pytest.fixture(scope="session")
def reference() -> PlainLearner:
    """The same weights in Transformers, float32."""
    return PlainLearner(tied=True)


@pytest.fixture
def engine(reference: PlainLearner, tmp_path: Path) -> EngineProcess:
    """Holds the reference's weights as publication 7, whatever other tests have done to it."""
    engine = tiny_engine(tied=True)
    Publisher(
        reference, rank=0, world_size=1, workers=[], backend="shared_memory", folder=tmp_path, client=DirectClient(engine)
    ).publish(VERSION)
    return engine
