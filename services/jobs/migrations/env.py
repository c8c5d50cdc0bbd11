"""Alembic's environment: always online, over the engine that the store hands in."""

from __future__ import annotations

from alembic import context

from services.jobs.tables import metadata

with context.config.attributes["engine"].connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    if connection.in_transaction():
        connection.commit()
