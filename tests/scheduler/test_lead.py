"""The lead's own rules: what a stage boundary means for the teacher."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from services.scheduler.lead import Lead, LeadParts
from services.scheduler.progress import Cursor, Progress


class Recorder:
    """Answers every call and remembers it."""

    def __init__(self, **answers):
        self.calls = []
        self._answers = answers

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            answer = self._answers.get(name)
            return answer(*args) if callable(answer) else answer

        return call


def lead_with(**parts) -> Lead:
    names = LeadParts.__slots__
    job = SimpleNamespace(seed=0, compute=SimpleNamespace(micro_batch_tokens=64), evaluation=SimpleNamespace(every_steps=2))
    progress = Progress(Cursor(updates=7), incarnation=1, checkpoint_every=5)
    return Lead(job, LeadParts(**{name: parts.get(name, Recorder()) for name in names}), progress, num_ranks=1)


@pytest.mark.parametrize(
    ("boundary", "resumed", "anchor"), [("keep", False, "keep"), ("re_anchor", False, "policy"), ("reset", False, "base"), ("reset", True, "resume")]
)
def test_a_stage_boundary_anchors_the_teacher_as_the_job_file_says(boundary, resumed, anchor):
    teacher = Recorder(begin_stage=SimpleNamespace(masked_token_ids={"": frozenset({3})}))
    lead = lead_with(teacher=teacher)
    lead._batches = SimpleNamespace()
    stage = SimpleNamespace(boundary=SimpleNamespace(teacher=boundary), composition=SimpleNamespace(teacher="spec"))
    lead._anchor_teacher(stage, resumed=resumed, snapshot="file")
    assert teacher.calls == [("begin_stage", ("spec",), {"anchor": anchor, "snapshot": "file", "update": 7})]
    assert lead._batches.masked_token_ids == {"": {3}}
