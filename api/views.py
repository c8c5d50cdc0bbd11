"""From the store's records to the shapes of ``api/schemas.py``. Pure; no field of a record is sent by accident."""

from __future__ import annotations

from typing import Any

from api import schemas
from api.context import Context
from services.tracking.links import run_links


def job_view(record: Any, context: Context) -> schemas.Job:
    """A job as the API shows it."""
    runs = mlflow_runs(record, context)
    stages = [stage_progress(stage, runs) for stage in record.stages]
    here = f"/v1/jobs/{record.id}"
    return schemas.Job(
        id=record.id,
        name=record.name,
        status=record.status,
        desired_status=record.desired_status,
        reason=record.reason,
        message=record.message,
        version=record.version,
        seed=record.spec["seed"],
        labels=record.labels,
        spec_hash=record.spec_hash,
        cancel_mode=record.cancel_mode if record.desired_status == "cancelled" else None,
        stages=stages,
        progress=schemas.Progress(
            stages_done=sum(stage.status in ("succeeded", "skipped") for stage in stages),
            stages_total=len(stages),
            steps_done=sum(stage.step for stage in stages),
            steps_total=sum(stage.total_steps for stage in stages),
        ),
        links=schemas.Links(
            self=here,
            events=f"{here}/events",
            stream=f"{here}/events/stream",
            evaluations=f"{here}/evaluations",
            report=f"{here}/report",
            mlflow=runs.get(None),
        ),
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
    )


def stage_progress(stage: Any, runs: dict[str | None, str]) -> schemas.StageProgress:
    return schemas.StageProgress(
        index=stage.index,
        name=stage.name,
        status=stage.status,
        step=stage.step,
        total_steps=stage.total_steps,
        message=stage.message,
        mlflow_url=runs.get(stage.name),
    )


def event_view(item: Any) -> schemas.Event:
    return schemas.Event(
        seq=item.seq, id=item.id, type=item.kind, level=item.level, stage=item.stage, message=item.message, data=item.data or {}, created_at=item.created_at
    )


def checkpoint_view(record: Any, item: Any, context: Context) -> schemas.Checkpoint:
    """``policy_path`` follows the layout of the run folder: ``stages/<index>-<name>/policy``."""
    stage = record.stages[item.stage_index].name
    policy = context.settings.run_dir(record.id) / "stages" / f"{item.stage_index}-{stage}" / "policy"
    return schemas.Checkpoint(
        id=item.id,
        kind=item.kind,
        stage=stage,
        stage_index=item.stage_index,
        step=item.step,
        global_step=item.global_step,
        policy_version=item.policy_version,
        path=str(item.path),
        policy_path=str(policy) if item.kind == "stage" else None,
        manifest_sha256=item.manifest_sha256,
        created_at=item.created_at,
    )


def evaluation_view(record: Any, item: Any) -> schemas.Evaluation:
    return schemas.Evaluation(
        row=item.row,
        at=item.at,
        stage=None if item.stage_index is None else record.stages[item.stage_index].name,
        stage_index=item.stage_index,
        step=item.step,
        domain=item.domain,
        num_problems=item.num_problems,
        mean=item.mean,
        truncation_rate=item.truncation_rate,
        mean_tokens=item.mean_tokens,
        created_at=item.created_at,
    )


def mlflow_runs(record: Any, context: Context) -> dict[str | None, str]:
    """Addresses of the runs in MLflow by stage name, None for the job's own; empty before there are any."""
    return run_links(context.settings.run_dir(record.id), context.settings.mlflow_url)
