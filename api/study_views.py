"""From the store's study records to the shapes of ``api/schemas.py``, and what a study's records are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from api import schemas
from api.cluster_view import cluster_resources
from api.context import Context
from api.plan import warnings
from api.study_submission import StudySubmission
from services.jobs.study_records import seconds_between, study_records, this_machine
from services.jobs.study_states import study_status
from services.tracking.links import study_link


def study_view(record: Any, context: Context, *, members: Sequence[Any] | None = None, unmatched: Sequence[str] | None = None) -> schemas.Study:
    """A study as the API shows it."""
    here = f"/v1/studies/{record.id}"
    return schemas.Study(
        id=record.id,
        name=record.name,
        status=study_status(record.counts),
        counts=record.counts,
        num_members=sum(record.counts.values()),
        labels=record.labels,
        spec_hash=record.spec_hash,
        links={
            "self": here,
            "records": f"{here}/records",
            "report": f"{here}/report",
            "mlflow": study_link(context.settings.home.absolute(), record.id, context.settings.mlflow_url),
        },
        members=None if members is None else [member_view(member) for member in members],
        unmatched_records=None if unmatched is None else list(unmatched),
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
    )


def member_view(member: Any) -> schemas.StudyMember:
    fields = {name: getattr(member, name) for name in schemas.StudyMember.model_fields if name != "seconds"}
    return schemas.StudyMember(**fields, seconds=seconds_between(member.started_at, member.finished_at))


def records_of(record: Any, context: Context) -> list[dict[str, Any]]:
    """Of every member that has ended, in the study's order."""
    machine = this_machine((cluster_resources(context.settings) or {}).get("GPU", 0.0))
    store = context.store
    return study_records(record.name, store.study_members(record.id), store.kept_records(record.id), runs=context.settings.runs, machine=machine)


def study_plan(submission: StudySubmission, cluster: dict[str, float] | None) -> schemas.StudyPlan:
    """The answer to ``?dry_run=true``."""
    running = [member for member in submission.members if member.record is None]
    told: dict[str, None] = {}
    for arm, order in dict.fromkeys((member.arm, member.order) for member in running):
        job = next(member.spec for member in running if (member.arm, member.order) == (arm, order))
        told |= dict.fromkeys(f"arm {arm!r}: {words}" for words in warnings(job, job.resolved_stages(), cluster))
    return schemas.StudyPlan(
        name=submission.spec.name,
        spec_hash=submission.spec_hash,
        num_members=len(submission.members),
        num_recorded=len(submission.members) - len(running),
        total_steps=sum(stage.steps for member in running for stage in member.spec.resolved_stages()),
        members=[
            {"position": position, "arm": member.arm, "order": member.order, "seed": member.seed, "digest": member.digest, "recorded": member.record is not None}
            for position, member in enumerate(submission.members)
        ],
        unmatched_records=list(submission.unmatched),
        warnings=list(told),
    )
