"""A lease remembers which clock it runs by, so that one of before a reboot is over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("leases", sa.Column("clock", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("leases", "clock")
