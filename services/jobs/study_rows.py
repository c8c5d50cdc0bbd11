"""Studies: a file's runs as ordinary jobs, created in one transaction, steered together.

Invariant: members are queued in the study's order, because jobs of studies wait in the order of their ids and ids only grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, case, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from cluster.errors import Conflict, NotFound
from cluster.spec.job import JobSpec
from cluster.spec.study import StudySpec
from services.jobs.connection import Database, now_text
from services.jobs.ids import new_id
from services.jobs.job_rows import insert_job, request, stands
from services.jobs.records import EvaluationRecord, MemberRecord, StudyPlace, StudyRecord
from services.jobs.states import TERMINAL
from services.jobs.study_records import failed_by_its_method
from services.jobs.study_states import REQUESTS, check_study_request, study_status
from services.jobs.tables import evaluations, jobs, stages, studies, study_members

RECORD = study_members.c.record
STATUS = func.coalesce(jobs.c.status, RECORD["status"].as_string())
"""Of a member; one without a job has a record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMember:
    """A member as admission hands it over: a checked job, or the record that stands for it."""

    arm: str
    order: str
    seed: int
    digest: str
    spec: JobSpec | None
    resolved: dict[str, Any] | None
    record: dict[str, Any] | None


class StudyRows:
    """Part of ``JobStore``."""

    database: Database

    def create_study(
        self,
        spec: StudySpec,
        members: Sequence[NewMember],
        *,
        spec_hash: str,
        idempotency_key: str | None = None,
        request_hash: str | None = None,
    ) -> tuple[StudyRecord, bool]:
        """The study with all its jobs, and whether this key had made it before. Raises ``Conflict`` for the key with another body."""
        try:
            with self.database.write() as connection:
                known = _by_key(connection, idempotency_key, request_hash)
                if known is not None:
                    return known, True
                study_id = new_id("study")
                # what the user did not write stays unwritten: a member's digest is that of the file, not of our defaults
                content = spec.model_dump(mode="json", exclude_unset=True)
                connection.execute(
                    insert(studies).values(
                        id=study_id,
                        name=spec.name,
                        spec=content,
                        spec_hash=spec_hash,
                        labels=dict(spec.labels),
                        idempotency_key=idempotency_key,
                        request_hash=request_hash,
                        created_at=now_text(),
                    )
                )
                rows = []
                for position, member in enumerate(members):
                    job_id = None if member.record is not None else insert_job(connection, member.spec, resolved=member.resolved or {})
                    rows.append(
                        {
                            "study_id": study_id,
                            "position": position,
                            "arm": member.arm,
                            "order_name": member.order,
                            "seed": member.seed,
                            "digest": member.digest,
                            "job_id": job_id,
                            "record": member.record,
                        }
                    )
                connection.execute(insert(study_members), rows)
                return _study(connection, study_id), False
        except IntegrityError:
            # Another process inserted the same key between our look and our insert.
            with self.database.read() as connection:
                known = _by_key(connection, idempotency_key, request_hash)
                if known is None:
                    raise
                return known, True

    def get_study(self, study: str) -> StudyRecord:
        """By id, or the newest by name. Raises ``NotFound``."""
        by_name = select(studies.c.id).where(studies.c.name == study).order_by(studies.c.id.desc()).limit(1)
        with self.database.read() as connection:
            is_id = connection.execute(select(studies.c.id).where(studies.c.id == study)).first() is not None
            study_id = study if is_id else connection.execute(by_name).scalar_one_or_none()
            if study_id is None:
                raise NotFound(f"there is no study with the id or name {study!r}")
            return _study(connection, study_id)

    def list_studies(
        self, *, name: str | None = None, after: str | None = None, limit: int = 20, order: str = "desc"
    ) -> tuple[list[StudyRecord], bool]:
        """A page of studies by time of creation, and whether there are more."""
        conditions = [studies.c.name == name] if name is not None else []
        if after is not None:
            conditions.append(studies.c.id < after if order == "desc" else studies.c.id > after)
        query = _studies().where(and_(True, *conditions)).order_by(studies.c.id.desc() if order == "desc" else studies.c.id).limit(limit + 1)
        with self.database.read() as connection:
            found = _study_records(connection, connection.execute(query).mappings().all())
        return found[:limit], len(found) > limit

    def study_members(self, study_id: str) -> list[MemberRecord]:
        """In the study's order."""
        progress = (
            select(
                stages.c.job_id,
                func.sum(stages.c.step).label("steps_done"),
                func.sum(stages.c.total_steps).label("steps_total"),
            )
            .join(study_members, study_members.c.job_id == stages.c.job_id)
            .where(study_members.c.study_id == study_id)
            .group_by(stages.c.job_id)
            .subquery()
        )
        query = (
            select(
                study_members.c.position,
                study_members.c.arm,
                study_members.c.order_name.label("order"),
                study_members.c.seed,
                study_members.c.digest,
                study_members.c.job_id,
                STATUS.label("status"),
                *(func.coalesce(jobs.c[name], RECORD[name].as_string()).label(name) for name in ("reason", "message")),
                *(jobs.c[name] for name in ("started_at", "finished_at")),
                func.coalesce(progress.c.steps_done, 0).label("steps_done"),
                func.coalesce(progress.c.steps_total, 0).label("steps_total"),
                study_members.c.record.is_not(None).label("recorded"),
                jobs.c.resolved["model_sha256"].as_string().label("model_sha256"),
                jobs.c.resolved["inputs"].label("inputs"),
            )
            .select_from(study_members.outerjoin(jobs, jobs.c.id == study_members.c.job_id).outerjoin(progress, progress.c.job_id == study_members.c.job_id))
            .where(study_members.c.study_id == study_id)
            .order_by(study_members.c.position)
        )
        with self.database.read() as connection:
            return [MemberRecord(**{**row, "recorded": bool(row["recorded"])}) for row in connection.execute(query).mappings()]

    def kept_records(self, study_id: str) -> dict[int, dict[str, Any]]:
        """The records that came with the submission, by member position."""
        query = select(study_members.c.position, study_members.c.record).where(study_members.c.study_id == study_id, study_members.c.record.is_not(None))
        with self.database.read() as connection:
            return {position: record for position, record in connection.execute(query)}

    def place_in_study(self, job_id: str) -> StudyPlace | None:
        """The study of a job, and the member that it is; None for a job of no study, or one that a resume has replaced."""
        query = (
            select(studies.c.id.label("study_id"), studies.c.name.label("study"), study_members.c.arm, study_members.c.order_name, study_members.c.seed, studies.c.created_at)
            .join(study_members, study_members.c.study_id == studies.c.id)
            .where(study_members.c.job_id == job_id)
        )
        with self.database.read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else StudyPlace(**{name.removesuffix("_name"): value for name, value in row.items()})

    # -- what users ask for ------------------------------------------------------------------------------------------

    def request_study(self, study_id: str, action: str, mode: str = "graceful") -> StudyRecord:
        """Cancel, pause or resume every member that it concerns, in one transaction. A resume queues failed and cancelled members
        again as new jobs, but for those that failed by their method: that is their result. Raises ``IllegalTransition`` where it
        concerns none."""
        with self.database.write() as connection:
            members = _locked_members(connection, study_id)
            study = _study(connection, study_id)
            check_study_request(study.name, study_status(study.counts), Counter(state for _, _, state in members), action)
            for position, job_id, state in members:
                if state not in REQUESTS[action]:
                    continue
                if action == "resume" and state in TERMINAL:
                    self._queue_again(connection, study_id, position, job_id)
                else:
                    request(connection, job_id, action, mode=mode)
            return _study(connection, study_id)

    def _queue_again(self, connection: Connection, study_id: str, position: int, job_id: str) -> None:
        old = connection.execute(select(jobs.c.spec, jobs.c.resolved).where(jobs.c.id == job_id)).one()
        new = insert_job(connection, JobSpec.model_validate(old.spec), resolved=old.resolved)
        mine = (study_members.c.study_id == study_id, study_members.c.position == position)
        connection.execute(update(study_members).where(*mine).values(job_id=new))

    # -- what members share ------------------------------------------------------------------------------------------

    def base_evaluations(self, job_id: str, digests: Mapping[str, str], measured_on: str) -> list[EvaluationRecord]:
        """Scores of the base model that other members of the job's study have on the same problems (``digests``: by domain), with
        the same model, device and dtype; the oldest of each domain."""
        mine = select(study_members.c.study_id).where(study_members.c.job_id == job_id).scalar_subquery()
        query = (
            select(evaluations)
            .join(study_members, study_members.c.job_id == evaluations.c.job_id)
            .where(study_members.c.study_id == mine, evaluations.c.job_id != job_id, evaluations.c.row == 0, evaluations.c.at == "boundary")
            .where(evaluations.c.domain.in_(list(digests)), evaluations.c.measured_on == measured_on)
            .order_by(evaluations.c.created_at, evaluations.c.job_id)
        )
        found: dict[str, EvaluationRecord] = {}
        with self.database.read() as connection:
            identity = _model_identity(connection, job_id)
            if identity is None:
                return []
            for row in connection.execute(query).mappings():
                if row["domain"] in found or row["problems_digest"] != digests[row["domain"]]:
                    continue
                if _model_identity(connection, row["job_id"]) == identity:
                    found[row["domain"]] = EvaluationRecord(**row)
        return list(found.values())


def _locked_members(connection: Connection, study_id: str) -> list[tuple[int, str, str]]:
    """(position, job id, how it stands) of every member with a job that has no result yet or succeeded, in the study's order. Two
    requests of one study wait for each other, and the jobs stay as they were read: otherwise two resumes at once would each queue a
    failed member again."""
    connection.execute(select(studies.c.id).where(studies.c.id == study_id).with_for_update())
    query = select(study_members.c.position, study_members.c.job_id).where(study_members.c.study_id == study_id, study_members.c.job_id.is_not(None))
    placed = connection.execute(query.order_by(study_members.c.position)).all()
    of_study = select(study_members.c.job_id).where(study_members.c.study_id == study_id)
    locked = select(jobs.c.id, jobs.c.status, jobs.c.desired_status, jobs.c.reason).where(jobs.c.id.in_(of_study)).order_by(jobs.c.id).with_for_update()
    rows = connection.execute(locked).mappings().all()
    states = {row["id"]: stands(row["status"], row["desired_status"]) for row in rows if not failed_by_its_method(row)}
    return [(position, job_id, states[job_id]) for position, job_id in placed if job_id in states]


def _model_identity(connection: Connection, job_id: str) -> tuple[Any, ...] | None:
    """What two jobs must share to have the same base model; None where its content is not known."""
    row = connection.execute(select(jobs.c.resolved, jobs.c.spec).where(jobs.c.id == job_id)).one()
    sha256, revision = row.resolved.get("model_sha256"), row.resolved.get("model_revision")
    return (sha256, revision, row.spec["model"].get("id")) if sha256 or revision else None


def _by_key(connection: Connection, key: str | None, request_hash: str | None) -> StudyRecord | None:
    if key is None:
        return None
    row = connection.execute(select(studies.c.id, studies.c.request_hash).where(studies.c.idempotency_key == key)).first()
    if row is None:
        return None
    if row.request_hash != request_hash:
        raise Conflict(
            f"idempotency key {key!r} was used before with another body (study {row.id})",
            reason="idempotency_key_reused",
            details={"study_id": row.id},
        )
    return _study(connection, row.id)


def _studies() -> Select:
    return select(*(studies.c[name] for name in ("id", "name", "spec", "spec_hash", "labels", "created_at")))


def _study(connection: Connection, study_id: str) -> StudyRecord:
    return _study_records(connection, [connection.execute(_studies().where(studies.c.id == study_id)).mappings().one()])[0]


def _study_records(connection: Connection, rows: Sequence[Any]) -> list[StudyRecord]:
    """With the counts of their members, which one query fetches for all."""
    query = (
        select(study_members.c.study_id, STATUS.label("status"), func.count().label("count"), func.min(jobs.c.started_at).label("first"), func.max(jobs.c.finished_at).label("last"))
        .select_from(study_members.outerjoin(jobs, jobs.c.id == study_members.c.job_id))
        .where(study_members.c.study_id.in_([row["id"] for row in rows]))
        .group_by(study_members.c.study_id, STATUS)
        .order_by(study_members.c.study_id, case((STATUS == "queued", 0), else_=1), STATUS)
    )
    groups: dict[str, list[Any]] = {row["id"]: [] for row in rows}
    for group in connection.execute(query) if rows else ():
        groups[group.study_id].append(group)
    return [_with_counts(row, groups[row["id"]]) for row in rows]


def _with_counts(row: Any, groups: Sequence[Any]) -> StudyRecord:
    counts = {group.status: group.count for group in groups}
    started = min((group.first for group in groups if group.first), default=None)
    ended = all(status in TERMINAL for status in counts)
    finished = max((group.last for group in groups if group.last), default=None) if ended else None
    return StudyRecord(**row, counts=counts, started_at=started, finished_at=finished)
