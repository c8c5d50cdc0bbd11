"""An evaluation remembers what it was measured on, and how often each problem was passed; rows of before know neither."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("evaluations", sa.Column("problems_digest", sa.String(64), nullable=True))
    op.add_column("evaluations", sa.Column("samples_per_problem", sa.Integer, nullable=True))
    op.add_column("evaluations", sa.Column("passed", sa.JSON, nullable=True))


def downgrade() -> None:
    for name in ("passed", "samples_per_problem", "problems_digest"):
        op.drop_column("evaluations", name)
