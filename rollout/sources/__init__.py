"""Where a step's groups come from, by kind of experience. A new one is one file here, one spec class, one line, one test."""

from __future__ import annotations

from typing import Any

from rollout.seeds import sampling_seed
from rollout.sources.base import Generate, Source, StageProblems, StepExperience, Verify
from rollout.sources.demonstrations import DemonstrationSource
from rollout.sources.mixture import Mixture
from rollout.sources.policy import PolicySource
from rollout.sources.replayed import ReplayedSource

__all__ = [
    "SOURCES",
    "Generate",
    "Mixture",
    "Source",
    "StageProblems",
    "StepExperience",
    "Verify",
    "build_source",
    "sampling_seed",
]

SOURCES: dict[str, type] = {"policy": PolicySource, "demonstrations": DemonstrationSource, "replayed": ReplayedSource}


def build_source(experience: Any, stage: StageProblems) -> Source:
    """The source that a composition's experience asks for."""
    return SOURCES[experience.kind](experience, stage)
