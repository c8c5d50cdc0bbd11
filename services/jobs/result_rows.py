"""Checkpoints and evaluations: what a job has made so far."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, delete, func, insert, or_, select, update

from cluster.errors import Conflict
from services.jobs.attempt_rows import live_job
from services.jobs.connection import Database, now_text
from services.jobs.event_rows import add_event
from services.jobs.records import CheckpointRecord, EvaluationRecord
from services.jobs.tables import attempts, checkpoints, evaluations


class ResultRows:
    """Part of ``JobStore``."""

    database: Database

    def commit_checkpoint(self, attempt_id: str, **fields: Any) -> None:
        """The commit point: row, progress mark and event in one transaction. Fields as in ``CheckpointRecord``."""
        with self.database.write() as connection:
            job = live_job(connection, attempt_id)
            known = connection.execute(select(checkpoints.c.job_id, checkpoints.c.manifest_sha256).where(checkpoints.c.id == fields["id"])).first()
            if known is not None:
                if (known.job_id, known.manifest_sha256) != (job.id, fields["manifest_sha256"]):
                    raise Conflict(f"checkpoint {fields['id']} was committed before with other content", reason="checkpoint_id_reused")
                return  # the answer to the first call was lost on its way
            best = connection.execute(select(func.max(checkpoints.c.global_step)).where(checkpoints.c.job_id == job.id)).scalar_one()
            connection.execute(
                insert(checkpoints).values(job_id=job.id, attempt_id=attempt_id, state="committed", created_at=now_text(), **fields)
            )
            if best is None or fields["global_step"] > best:
                # Committing the same place again is no progress, or a job that always fails there would be tried for ever.
                connection.execute(update(attempts).where(attempts.c.id == attempt_id).values(progressed=1))
            add_event(
                connection,
                job.id,
                kind="checkpoint.saved",
                message=f"checkpoint at step {fields['step']} of stage {fields['stage_index']} ({fields['kind']})",
                data={"checkpoint": fields["id"], "global_step": fields["global_step"], "kind": fields["kind"]},
            )

    def latest_checkpoint(self, job_id: str) -> CheckpointRecord | None:
        """The newest that is not known to be damaged."""
        good = [record for record in self.list_checkpoints(job_id) if record.state == "committed"]
        return good[-1] if good else None

    def list_checkpoints(self, job_id: str) -> list[CheckpointRecord]:
        """In the order in which they were committed; the version of the policy grows over restarts, too."""
        query = select(checkpoints).where(checkpoints.c.job_id == job_id).order_by(checkpoints.c.policy_version, checkpoints.c.id)
        with self.database.read() as connection:
            return [CheckpointRecord(**row) for row in connection.execute(query).mappings()]

    def mark_checkpoint_bad(self, checkpoint_id: str) -> None:
        self._set_checkpoint_state(checkpoint_id, "damaged")

    def mark_checkpoints_removed(self, checkpoint_ids: list[str]) -> None:
        for checkpoint_id in checkpoint_ids:
            self._set_checkpoint_state(checkpoint_id, "removed")

    def _set_checkpoint_state(self, checkpoint_id: str, state: str) -> None:
        with self.database.write() as connection:
            connection.execute(update(checkpoints).where(checkpoints.c.id == checkpoint_id).values(state=state))

    def record_evaluation(
        self,
        attempt_id: str,
        *,
        row: int,
        stage_index: int | None,
        step: int,
        domain: str,
        mean: float,
        num_problems: int,
        truncation_rate: float,
        mean_tokens: float,
        scores: list[float],
        at: str,
        problems_digest: str | None = None,
        samples_per_problem: int | None = None,
        passed: list[int] | None = None,
        measured_on: str | None = None,
    ) -> None:
        """One measurement; measuring the same thing again replaces it."""
        with self.database.write() as connection:
            job = live_job(connection, attempt_id)
            key = {"job_id": job.id, "row": row, "step": step, "domain": domain, "at": at}
            connection.execute(delete(evaluations).where(*(evaluations.c[name] == value for name, value in key.items())))
            connection.execute(
                insert(evaluations).values(
                    **key,
                    stage_index=stage_index,
                    mean=mean,
                    num_problems=num_problems,
                    truncation_rate=truncation_rate,
                    mean_tokens=mean_tokens,
                    scores=scores,
                    problems_digest=problems_digest,
                    samples_per_problem=samples_per_problem,
                    passed=passed,
                    measured_on=measured_on,
                    created_at=now_text(),
                )
            )

    def forget_evaluations(self, attempt_id: str, *, row: int, during_row: int, step: int) -> None:
        """Drop boundary rows after ``row``, and scores inside stages after ``step`` of row ``during_row``."""
        at, of_row = evaluations.c.at, evaluations.c.row
        later = or_(of_row > during_row, and_(of_row == during_row, evaluations.c.step > step))
        with self.database.write() as connection:
            job = live_job(connection, attempt_id)
            undone = or_(and_(at == "boundary", of_row > row), and_(at == "during", later))
            connection.execute(delete(evaluations).where(evaluations.c.job_id == job.id, undone))

    def list_evaluations(self, job_id: str) -> list[EvaluationRecord]:
        """By row, then step, then time."""
        query = (
            select(evaluations)
            .where(evaluations.c.job_id == job_id)
            .order_by(evaluations.c.row, evaluations.c.step, evaluations.c.created_at, evaluations.c.domain)
        )
        with self.database.read() as connection:
            return [EvaluationRecord(**row) for row in connection.execute(query).mappings()]
