"""How long a sequence the engines must be able to hold, and where a model's files are."""

from __future__ import annotations

import json

import pytest

from cluster.spec.job import JobSpec
from services.scheduler.model_source import local_folder, max_model_len


def job(**evaluation) -> JobSpec:
    stage = {"domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}}
    return JobSpec.model_validate(
        {
            "name": "a",
            "model": {"path": "models/a"},
            "stages": [
                {"name": "short", "max_prompt_tokens": 100, "sampling": {"max_tokens": 30}, **stage},
                {"name": "long", "max_prompt_tokens": 40, "sampling": {"max_tokens": 50}, **stage},
            ],
            "evaluation": evaluation,
        }
    )


@pytest.mark.parametrize(("evaluation", "limit", "expected"), [({}, 4096, 150), ({"max_tokens": 70}, 4096, 170), ({}, 128, 128)])
def test_the_longest_prompt_and_the_longest_completion_of_stages_and_evaluation_fit(tmp_path, evaluation, limit, expected):
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": limit}))
    assert max_model_len(job(**evaluation), tmp_path) == expected


def test_a_local_model_is_where_admission_found_it(tmp_path):
    assert local_folder(job().model, {"model_path": str(tmp_path)}) == tmp_path
