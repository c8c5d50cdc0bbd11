"""The tables. Rows are the truth; Ray, MLflow and processes are only observed."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(64), nullable=False, index=True),
    Column("status", String(16), nullable=False, index=True),
    Column("desired_status", String(16), nullable=False),
    Column("cancel_mode", String(16), nullable=False),
    Column("reason", String(64)),
    Column("message", Text),
    Column("version", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("spec_hash", String(64), nullable=False),
    Column("resolved", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("idempotency_key", String(255), unique=True),
    Column("request_hash", String(64)),
    Column("last_event_seq", Integer, nullable=False),
    Column("incarnations", Integer, nullable=False),
    Column("created_at", String(40), nullable=False, index=True),
    Column("started_at", String(40)),
    Column("finished_at", String(40)),
)

stages = Table(
    "stages",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("index", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("step", Integer, nullable=False),
    Column("total_steps", Integer, nullable=False),
    Column("message", Text),
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("started_at", String(40), nullable=False),
    Column("ended_at", String(40)),
    Column("exit_reason", String(64)),
    Column("message", Text),
    Column("incarnations", Integer, nullable=False),
    Column("progressed", Integer, nullable=False),
    UniqueConstraint("job_id", "number"),
)

events = Table(
    "events",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("seq", Integer, nullable=False),
    Column("kind", String(64), nullable=False),
    Column("level", String(16), nullable=False),
    Column("stage", String(64)),
    Column("message", Text, nullable=False),
    Column("data", JSON, nullable=False),
    Column("created_at", String(40), nullable=False),
    UniqueConstraint("job_id", "seq"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("attempt_id", String(64), nullable=False),
    Column("stage_index", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("global_step", Integer, nullable=False),
    Column("path", Text, nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("policy_version", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created_at", String(40), nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("row", Integer, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("domain", String(64), primary_key=True),
    Column("at", String(16), primary_key=True),
    Column("stage_index", Integer),
    Column("mean", Float, nullable=False),
    Column("num_problems", Integer, nullable=False),
    Column("truncation_rate", Float, nullable=False),
    Column("mean_tokens", Float, nullable=False),
    Column("scores", JSON, nullable=False),
    Column("created_at", String(40), nullable=False),
    Column("problems_digest", String(64)),
    Column("samples_per_problem", Integer),
    Column("passed", JSON(none_as_null=True)),
    Column("measured_on", String(64)),
)

studies = Table(
    "studies",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(64), nullable=False, index=True),
    Column("spec", JSON, nullable=False),
    Column("spec_hash", String(64), nullable=False),
    Column("labels", JSON, nullable=False),
    Column("idempotency_key", String(255), unique=True),
    Column("request_hash", String(64)),
    Column("created_at", String(40), nullable=False),
)

study_members = Table(
    "study_members",
    metadata,
    Column("study_id", String(64), ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("arm", String(64), nullable=False),
    Column("order_name", String(64), nullable=False),
    Column("seed", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("job_id", String(64), ForeignKey("jobs.id", ondelete="SET NULL"), index=True),
    Column("record", JSON(none_as_null=True)),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("created_at", String(40), nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(255), nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("clock", String(64), nullable=False, server_default=""),
)
