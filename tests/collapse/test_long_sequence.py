"""The watch on nine whole jobs of eight stages, none of which settled a threshold but that of ``nothing_right``: GRPO is well to the end,
EMA 5 % and StableSDPO are dead from the fifth stage on."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache

import pytest

from services.evaluation.collapse import CollapseWatch
from tests.collapse.recorded import TRACES

STAGES = ("sort", "reverse", "rotate", "swap", "sort-long", "reverse-long", "rotate-long", "swap-long")
DEAD = STAGES[4:]


@lru_cache
def said() -> dict[tuple[str, str], dict[str, int]]:
    """(run, stage) -> step of the first warning of each code."""
    with gzip.open(TRACES / "long-sequence.json.gz", "rt") as file:
        runs = json.load(file)
    found: dict[tuple[str, str], dict[str, int]] = {}
    for run, stages in runs.items():
        for stage, steps in stages.items():
            watch, first = CollapseWatch(), {}
            watch.begin_stage(stage)
            for step, values in steps:
                for warning in watch.observe(step, values, []).warnings:
                    if warning.raised:
                        first.setdefault(warning.code, step)
            found[run, stage] = first
    return found


def test_every_run_is_there():
    assert sorted(said()) == sorted((f"{arm}-{seed}", stage) for arm in ("grpo", "sdpo-ema5", "stable-sdpo") for seed in (1, 2, 3) for stage in STAGES)


def test_twelve_hundred_healthy_steps_of_grpo_raise_nothing():
    assert {key: codes for key, codes in said().items() if key[0].startswith("grpo") and codes} == {}


@pytest.mark.parametrize("arm", ["sdpo-ema5", "stable-sdpo"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_policy_that_is_dead_as_its_stage_begins_is_told_in_twelve_steps(arm, seed):
    """Score 0 from the first steps on: nothing is left to fall."""
    assert {stage: said()[f"{arm}-{seed}", stage].get("nothing_right") for stage in DEAD} == dict.fromkeys(DEAD, 12)


def test_the_teacher_agrees_with_a_policy_that_does_nothing_right():
    """4.9 nats a token in the first step of ``sort-long``, 0.2 in the last, at a score of 0: the loss looks better and better."""
    assert {key: codes["teacher_follows_policy"] for key, codes in said().items() if "teacher_follows_policy" in codes} == {
        ("sdpo-ema5-1", "sort-long"): 40,
        ("sdpo-ema5-2", "sort-long"): 42,
        ("sdpo-ema5-2", "rotate-long"): 46,
        ("sdpo-ema5-3", "reverse-long"): 34,
        ("sdpo-ema5-3", "rotate-long"): 48,
    }


def test_stages_of_sdpo_that_go_well_raise_nothing_but_where_their_score_falls():
    healthy = {key: codes for key, codes in said().items() if not key[0].startswith("grpo") and key[1] not in DEAD and codes}
    assert healthy == {
        # 0.98 at the tenth step to 0.95 and to 0.79 at the end
        ("sdpo-ema5-2", "swap"): {"positive_signal_fades": 49, "score_falls": 50, "teacher_turns_away": 50, "entropy_rises": 50},
        ("sdpo-ema5-3", "swap"): {"score_falls": 39, "entropy_rises": 39, "teacher_turns_away": 47},
    }
