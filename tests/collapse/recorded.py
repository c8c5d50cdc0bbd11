"""Recorded traces, and a watch run over one."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from cluster.messages import Completion, Problem, Rollout, RolloutGroup
from services.evaluation.collapse import CollapseWarning, CollapseWatch, Findings

TRACES = Path(__file__).parent / "traces"
HEALTHY = ("healthy-sdpo", "healthy-grpo", "healthy-frozen")
COLLAPSING = ("collapse-soft", "collapse-hard")


@dataclass(frozen=True)
class Step:
    """One recorded step."""

    step: int
    metrics: dict[str, float]
    groups: list[RolloutGroup]


@dataclass(frozen=True)
class Run:
    """A watch's answers over a whole trace."""

    findings: list[Findings]

    @property
    def raised(self) -> dict[str, list[CollapseWarning]]:
        found: dict[str, list[CollapseWarning]] = {}
        for one in self.findings:
            for warning in one.warnings:
                if warning.raised:
                    found.setdefault(warning.code, []).append(warning)
        return found


def group_of(number: int, completions: list[list[int]], texts: list[str]) -> RolloutGroup:
    """RolloutGroup as the lead has it, of the fields that the watch reads."""
    name = f"strings/train/{number}"
    rollouts = tuple(
        Rollout(
            rollout_id=f"{name}/{index}",
            problem_id=name,
            prompt_token_ids=np.zeros(1, np.int32),
            completion=Completion(
                token_ids=np.asarray(ids, np.int32),
                logprobs=np.zeros(len(ids), np.float32),
                finish_reason="stop",
                policy_version=1,
            ),
            text=text,
        )
        for index, (ids, text) in enumerate(zip(completions, texts, strict=True))
    )
    return RolloutGroup(problem=Problem(problem_id=name, domain="strings", messages=(), solution=""), rollouts=rollouts)


@lru_cache
def load(name: str) -> tuple[Step, ...]:
    with gzip.open(TRACES / f"{name}.json.gz", "rt") as file:
        trace = json.load(file)
    words = dict(enumerate(trace["vocabulary"]))
    steps = []
    for step in trace["steps"]:
        groups = []
        for number, completions in enumerate(step["groups"]):
            ids = [[int(one) for one in text.split()] for text in completions]
            groups.append(group_of(number, ids, ["".join(words.get(one, "") for one in of_completion) for of_completion in ids]))
        steps.append(Step(step["step"], step["metrics"], groups))
    return tuple(steps)


@lru_cache
def run(name: str) -> Run:
    watch = CollapseWatch()
    watch.begin_stage(name)
    return Run([watch.observe(step.step, step.metrics, step.groups) for step in load(name)])
