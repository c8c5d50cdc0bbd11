"""``evaluation.seed``: which problems are evaluated and how they are sampled, whatever the job's seed trains on."""

from __future__ import annotations

import pytest

from cluster.spec.job import JobSpec
from services.scheduler.assembly import evaluation_seed


@pytest.mark.parametrize(("job_seed", "evaluation", "expected"), [(7, {}, 7), (7, {"seed": 3}, 3), (7, {"seed": 0}, 0), (8, {"seed": 3}, 3)])
def test_it_is_the_jobs_unless_the_evaluation_has_one(job_seed, evaluation, expected):
    stage = {"name": "s", "domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}}
    job = JobSpec.model_validate({"name": "x", "model": {"path": "m"}, "seed": job_seed, "stages": [stage], "evaluation": evaluation})
    assert evaluation_seed(job) == expected
