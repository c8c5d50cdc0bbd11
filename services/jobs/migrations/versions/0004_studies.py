"""Studies and their members; an evaluation remembers on what device and with which dtype it was made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("evaluations", sa.Column("measured_on", sa.String(64), nullable=True))
    op.create_table(
        "studies",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("spec_hash", sa.String(64), nullable=False),
        sa.Column("labels", sa.JSON, nullable=False),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("request_hash", sa.String(64)),
        sa.Column("created_at", sa.String(40), nullable=False),
        sa.UniqueConstraint("idempotency_key", name="uq_studies_idempotency_key"),
    )
    op.create_index("ix_studies_name", "studies", ["name"])
    op.create_table(
        "study_members",
        sa.Column("study_id", sa.String(64), sa.ForeignKey("studies.id", ondelete="CASCADE", name="fk_study_members_study_id"), primary_key=True),
        sa.Column("position", sa.Integer, primary_key=True),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("order_name", sa.String(64), nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", ondelete="SET NULL", name="fk_study_members_job_id")),
        sa.Column("record", sa.JSON),
    )
    op.create_index("ix_study_members_job_id", "study_members", ["job_id"])


def downgrade() -> None:
    op.drop_table("study_members")
    op.drop_table("studies")
    op.drop_column("evaluations", "measured_on")
