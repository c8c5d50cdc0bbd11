"""What an attempt may ask of the scheduler. Every method takes the attempt's id first, and the store fences it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cluster.spec.job import JobSpec, own_domains
from services.evaluation.collapse import active_signs, evaluation_warnings
from services.evaluation.report_side_effects import REPORTED_KINDS, collapse_warnings
from services.jobs.ids import new_id


class AttemptCalls:
    """A plain class over the job store; the scheduler actor calls it for the attempts."""

    def __init__(self, store):
        self._store = store

    def describe(self, attempt_id: str) -> dict[str, Any]:
        job = self._job(attempt_id)
        return {"job_id": job.id, "spec": with_resolved_paths(job.spec, job.resolved), "resolved": job.resolved}

    def waiting(self, attempt_id: str, message: str) -> None:
        self._event(attempt_id, "job.waiting", message, level="warning")

    def mark_running(self, attempt_id: str) -> None:
        self._store.mark_running(attempt_id)

    def begin_incarnation(self, attempt_id: str, pid: int) -> int:
        incarnation = self._store.begin_incarnation(attempt_id)
        self._event(
            attempt_id,
            "learner.started",
            f"learner group started (incarnation {incarnation})",
            data={"incarnation": incarnation, "pid": pid},
        )
        return incarnation

    def stage_started(self, attempt_id: str, index: int, name: str, *, step: int, total_steps: int, resumed: bool) -> None:
        self._store.set_stage(attempt_id, index, status="running", step=step, total_steps=total_steps)
        how = f"continues at step {step}" if resumed else "started"
        self._event(attempt_id, "stage.status", f"stage {name} {how}", stage=name, data={"status": "running", "step": step})

    def stage_finished(self, attempt_id: str, index: int, policy: str, *, total_steps: int) -> None:
        self._store.set_stage(attempt_id, index, status="succeeded", step=total_steps, total_steps=total_steps)
        self._event(attempt_id, "stage.status", f"stage {index} finished", data={"status": "succeeded", "policy": policy})

    def step_done(
        self, attempt_id: str, index: int, *, step: int, total_steps: int, finite: bool, summary: dict[str, float]
    ) -> str:
        """Record the step; returns what the job is wanted to do: running, paused or cancelled."""
        message = ", ".join(f"{key} {value:.4f}" for key, value in summary.items() if value is not None)
        self._store.set_stage(attempt_id, index, status="running", step=step, total_steps=total_steps, message=message)
        if not finite:
            self._event(
                attempt_id,
                "warning",
                f"step {step}: loss or gradient not finite, step skipped",
                level="warning",
                data={"reason": "non_finite_loss"},
            )
        return self._store.control(attempt_id)[0]

    def wanted(self, attempt_id: str) -> str:
        """What the job is wanted to do: running, paused or cancelled."""
        return self._store.control(attempt_id)[0]

    def collapse_warning(self, attempt_id: str, warning: dict[str, Any]) -> None:
        """A sign of collapse was seen, or is over; ``warning`` carries its evidence."""
        raised = warning["raised"]
        self._event(
            attempt_id,
            "collapse.warning" if raised else "collapse.cleared",
            f"{warning['code']}: {warning['message']}",
            level="warning" if raised else "info",
            stage=warning["stage"],
            data=warning,
        )

    def evaluated_domains(self, attempt_id: str, row: int) -> list[str]:
        return [
            item.domain
            for item in self._store.list_evaluations(self._job(attempt_id).id)
            if item.row == row and item.at == "boundary"
        ]

    def record_evaluation(self, attempt_id: str, *, verifier_errors: int = 0, **fields: Any) -> None:
        self._store.record_evaluation(attempt_id, **fields)
        self._event(
            attempt_id,
            "evaluation.completed",
            f"{fields['domain']}: {fields['mean']:.3f} on {fields['num_problems']} problems (row {fields['row']}, {fields['at']})",
            data={**{key: value for key, value in fields.items() if key not in ("scores", "passed")}, "verifier_errors": verifier_errors},
        )

    def look_at_evaluations(
        self, attempt_id: str, *, stage: str, stage_index: int, step: int, at: str, unverified: dict[str, float] | None = None
    ) -> None:
        """Say what a recorded measurement shows beside the earlier ones; looking again says nothing twice."""
        job = self._job(attempt_id)
        spec = JobSpec.model_validate(job.spec)
        events = [asdict(item) for item in self._store.list_events(job.id, limit=None, kinds=REPORTED_KINDS)]
        found = evaluation_warnings(
            self._store.list_evaluations(job.id),
            stage=stage,
            stage_index=stage_index,
            step=step,
            at=at,
            own={part.name for part in own_domains(spec.stages[stage_index])},
            active=active_signs(collapse_warnings(spec.resolved_stages(), events), stage),
            unverified=unverified,
        )
        for warning in found:
            self.collapse_warning(attempt_id, warning.to_json())

    def base_evaluations(self, attempt_id: str, digests: dict[str, str], measured_on: str) -> list[dict[str, Any]]:
        """Scores of the base model that other members of the job's study have on the same problems; none for a job of no study."""
        return [asdict(item) for item in self._store.base_evaluations(self._job(attempt_id).id, digests, measured_on)]

    def share_evaluation(self, attempt_id: str, measured: dict[str, Any]) -> None:
        """Record what another job measured, as one of ``base_evaluations`` has it, as this job's own."""
        fields = {name: value for name, value in measured.items() if name not in ("job_id", "created_at")}
        self._store.record_evaluation(attempt_id, **fields)
        self._event(
            attempt_id,
            "evaluation.shared",
            f"{fields['domain']}: {fields['mean']:.3f} on {fields['num_problems']} problems, measured by {measured['job_id']} of the same study",
            data={"domain": fields["domain"], "row": fields["row"], "mean": fields["mean"], "job": measured["job_id"]},
        )

    def new_checkpoint_id(self, attempt_id: str) -> str:
        return new_id("ckpt")

    def latest_checkpoint(self, attempt_id: str) -> dict[str, Any] | None:
        record = self._store.latest_checkpoint(self._job(attempt_id).id)
        return None if record is None else asdict(record)

    def checkpoint_damaged(self, attempt_id: str, checkpoint_id: str, message: str) -> None:
        self._store.mark_checkpoint_bad(checkpoint_id)
        self._event(
            attempt_id, "warning", message, level="error", data={"reason": "checkpoint_damaged", "checkpoint": checkpoint_id}
        )

    def forget_evaluations_after(self, attempt_id: str, stage_index: int, step: int, at_stage_end: bool) -> None:
        """Scores of policies that a fall-back to an earlier checkpoint undid; they are measured again."""
        self._store.forget_evaluations(attempt_id, row=stage_index + int(at_stage_end), during_row=stage_index + 1, step=step)

    def checkpoints_removed(self, attempt_id: str, checkpoint_ids: list[str]) -> None:
        self._store.mark_checkpoints_removed(checkpoint_ids)

    def commit_checkpoint(self, attempt_id: str, *, keep: int, **fields: Any) -> list[str]:
        """Commit; returns the ids whose folders must stay: the newest ``keep`` and every stage's end."""
        self._store.commit_checkpoint(attempt_id, **fields)
        records = [item for item in self._store.list_checkpoints(self._job(attempt_id).id) if item.state == "committed"]
        resumes = sorted((r for r in records if r.kind == "resume"), key=lambda r: r.global_step)[-keep:]
        return [record.id for record in resumes] + [record.id for record in records if record.kind == "stage"]

    def finish(self, attempt_id: str, outcome: str, reason: str | None, message: str) -> None:
        self._store.finish_attempt(attempt_id, outcome, reason=reason, message=message)

    def report_source(self, attempt_id: str) -> dict[str, Any]:
        job = self._job(attempt_id)
        return {
            "job": asdict(job),
            "evaluations": [asdict(item) for item in self._store.list_evaluations(job.id)],
            "checkpoints": [asdict(item) for item in self._store.list_checkpoints(job.id)],
            "events": [asdict(item) for item in self._store.list_events(job.id, limit=None, kinds=REPORTED_KINDS)],
        }

    def _job(self, attempt_id: str):
        return self._store.job_of_attempt(attempt_id)

    def _event(
        self, attempt_id: str, kind: str, message: str, *, level: str = "info", data: dict | None = None, stage: str | None = None
    ) -> None:
        self._store.append_event(self._job(attempt_id).id, kind=kind, level=level, message=message, data=data, stage=stage)


def with_resolved_paths(spec: Any, resolved: dict[str, Any]) -> Any:
    """The spec with every data file's path as admission found it, since an attempt runs in another folder."""
    known = resolved.get("datasets") or {}

    def resolve(value: Any) -> Any:
        if isinstance(value, dict):
            changed = {key: resolve(item) for key, item in value.items()}
            if value.get("kind") == "dataset" and value.get("path") in known:
                changed["path"] = known[value["path"]].get("path", value["path"])
            return changed
        return [resolve(item) for item in value] if isinstance(value, list | tuple) else value

    return resolve(spec)
