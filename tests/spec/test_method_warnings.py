"""What is legal and still told to the user, and what is not worth a word."""

from __future__ import annotations

import pytest

from cluster.spec.job import JobSpec
from cluster.spec.method_warnings import method_warnings

EXTERNAL = {"kind": "external", "path": "m"}
FROZEN, EMA = {"kind": "frozen"}, {"kind": "ema"}
SIBLING = {"kind": "sibling_solution"}
DATA = {"kind": "dataset", "path": "x.jsonl"}


def warnings(method: dict, index: int = 0, **stage) -> list[str]:
    """Of a stage that has ``index`` others before it."""
    before = [{"name": f"before-{place}", "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}} for place in range(index)]
    named = {"name": "s", "domain": {"kind": "arithmetic"}, "method": method} | stage
    job = JobSpec.model_validate({"name": "x", "model": {"path": "m"}, "stages": [*before, named]})
    return method_warnings(job.resolved_stages()[index])


def custom(*terms: dict, **more) -> dict:
    return {"recipe": "custom", "terms": list(terms), **more}


RKL = {"name": "rkl", "objective": {"kind": "reverse_kl"}, "support": {"kind": "full"}, "importance_cap": None}
PG = {"name": "pg", "objective": {"kind": "policy_gradient"}}
REFERENCE = {"name": "reference", "objective": {"kind": "reference_kl"}}

IDLE = "begins as the policy itself"
TOLD = [
    (custom(RKL, teacher=FROZEN), {}, IDLE),
    (custom(RKL, teacher=EMA), {"index": 1}, IDLE),
    (custom(RKL, REFERENCE, teacher=FROZEN), {}, IDLE),
    (custom(RKL, teacher={"kind": "mix", "weight": 0.5}), {}, IDLE),
    (custom(RKL, teacher={"kind": "per_domain", "teachers": {"s": FROZEN}}), {}, IDLE),
    ({"recipe": "stable_sdpo", "period": 50}, {"steps": 49}, "would jump after 50 steps, the stage has 49"),
    ({"recipe": "stable_sdpo", "period": 50}, {"index": 1}, "drops what earlier jumps blended"),
    (custom({**RKL, "support": {"kind": "sampled"}}, teacher=EXTERNAL), {"sampling": {"top_p": 0.9}}, "estimates are biased"),
    ({"recipe": "eopd", "teacher": EXTERNAL, "tail": "drop"}, {}, "forward KL without its tail"),
    (
        custom(
            {**PG, "objective": {"kind": "policy_gradient", "advantage": {"teacher_weight": 1.0, "outcome_weight": 0.0, "future_coupling": 0.5}}},
            teacher={"kind": "mix", "second": EXTERNAL, "weight": 1.25},
        ),
        {},
        "only with future_coupling 0",
    ),
    ({"recipe": "sdpo"}, {"rollouts_per_problem": 1}, "no rollout has a sibling"),
    ({"recipe": "sdft"}, {"domain": DATA}, "the bare answer is the demonstration"),
    (custom({**PG, "masks": [{"kind": "prefix", "start_tokens": 256}]}), {}, "masks nothing"),
    (custom({"name": "ce", "objective": {"kind": "cross_entropy"}}), {}, "zero in expectation"),
]


@pytest.mark.parametrize(("method", "stage", "words"), TOLD)
def test_what_is_told(method, stage, words):
    (said,) = warnings(method, **stage)
    assert words in said


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        ({"recipe": "grpo"}, {}),
        ({"recipe": "sdpo"}, {}),
        (custom(RKL, teacher=EXTERNAL), {}),
        (custom(RKL, PG, teacher=FROZEN), {}),
        (custom(RKL, teacher={"kind": "frozen", "initial": {"path": "x"}}), {}),
        (custom(RKL, teacher=FROZEN), {"index": 1, "boundary": {"teacher": "keep"}}),
        (custom(RKL, REFERENCE, teacher=FROZEN), {"index": 1}),
        (custom(RKL, teacher=FROZEN, domain_contexts={"s": SIBLING}), {}),
        ({"recipe": "stable_sdpo", "period": 50}, {"steps": 50, "index": 1, "boundary": {"teacher": "keep"}}),
        ({"recipe": "sdft"}, {"domain": DATA | {"columns": {"solution": "worked"}}}),
        ({"recipe": "sft"}, {}),
        ({"recipe": "opd_topk", "teacher": EXTERNAL}, {"sampling": {"top_p": 0.9}}),
    ],
)
def test_what_needs_no_word(method, stage):
    assert warnings(method, **stage) == []
