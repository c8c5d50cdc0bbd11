"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _job(**options) -> sa.Column:
    return sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE", name=options.pop("fk")), nullable=False, **options)


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("desired_status", sa.String(16), nullable=False),
        sa.Column("cancel_mode", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64)),
        sa.Column("message", sa.Text),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("spec_hash", sa.String(64), nullable=False),
        sa.Column("resolved", sa.JSON, nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request_hash", sa.String(64)),
        sa.Column("last_event_seq", sa.Integer, nullable=False),
        sa.Column("incarnations", sa.Integer, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.Column("started_at", sa.String(40)),
        sa.Column("finished_at", sa.String(40)),
        sa.UniqueConstraint("idempotency_key", name="uq_jobs_idempotency_key"),
    )
    for column in ("name", "status", "created_at"):
        op.create_index(f"ix_jobs_{column}", "jobs", [column])
    op.create_table(
        "stages",
        _job(fk="fk_stages_job_id", primary_key=True),
        sa.Column("index", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("total_steps", sa.Integer, nullable=False),
        sa.Column("message", sa.Text),
    )
    op.create_table(
        "attempts",
        sa.Column("id", sa.String(64), primary_key=True),
        _job(fk="fk_attempts_job_id"),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("started_at", sa.String(40), nullable=False),
        sa.Column("ended_at", sa.String(40)),
        sa.Column("exit_reason", sa.String(64)),
        sa.Column("message", sa.Text),
        sa.Column("incarnations", sa.Integer, nullable=False),
        sa.Column("progressed", sa.Integer, nullable=False),
        sa.UniqueConstraint("job_id", "number", name="uq_attempts_job_id"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.String(64), primary_key=True),
        _job(fk="fk_events_job_id"),
        sa.Column("seq", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(64)),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.UniqueConstraint("job_id", "seq", name="uq_events_job_id"),
    )
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.String(64), primary_key=True),
        _job(fk="fk_checkpoints_job_id"),
        sa.Column("attempt_id", sa.String(64), nullable=False),
        sa.Column("stage_index", sa.Integer, nullable=False),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("global_step", sa.Integer, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("manifest_sha256", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("policy_version", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "evaluations",
        _job(fk="fk_evaluations_job_id", primary_key=True),
        sa.Column("row", sa.Integer, primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("domain", sa.String(64), primary_key=True),
        sa.Column("at", sa.String(16), primary_key=True),
        sa.Column("stage_index", sa.Integer),
        sa.Column("mean", sa.Float, nullable=False),
        sa.Column("num_problems", sa.Integer, nullable=False),
        sa.Column("truncation_rate", sa.Float, nullable=False),
        sa.Column("mean_tokens", sa.Float, nullable=False),
        sa.Column("scores", sa.JSON, nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("secret_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.String(40), nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("holder", sa.String(255), nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
    )
    for table in ("attempts", "events", "checkpoints"):
        op.create_index(f"ix_{table}_job_id", table, ["job_id"])


def downgrade() -> None:
    for table in ("leases", "api_keys", "evaluations", "checkpoints", "events", "attempts", "stages", "jobs"):
        op.drop_table(table)
