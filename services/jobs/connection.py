"""Connections and transactions. SQLite: WAL, synchronous FULL, one writer at a time from BEGIN IMMEDIATE on; or PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event, func, select, text
from sqlalchemy.engine import make_url

from cluster.errors import HoldfastError

BUSY_TIMEOUT_MS = 30_000
REQUIRED_PRAGMAS = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": BUSY_TIMEOUT_MS}
MIGRATIONS = Path(__file__).parent / "migrations"


class StoreError(HoldfastError):
    """The database cannot be used safely."""

    reason = "store_unusable"


class Database:
    """One database; safe in several threads and processes."""

    def __init__(self, url: str):
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        if self.url.get_backend_name() not in ("sqlite", "postgresql"):
            raise StoreError(f"database_url must be sqlite:///... or postgresql+psycopg://..., got {self.url.render_as_string()!r}")
        self.engine = self._sqlite() if self.is_sqlite else create_engine(self.url, pool_size=8, max_overflow=24, pool_pre_ping=True)

    def _sqlite(self) -> Engine:
        if self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(self.url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "isolation_level": None})

        @event.listens_for(engine, "connect")
        def configure(connection, record) -> None:
            cursor = connection.cursor()
            for name, value in (("journal_mode", "WAL"), ("synchronous", "FULL"), ("foreign_keys", "ON"), ("busy_timeout", BUSY_TIMEOUT_MS)):
                cursor.execute(f"PRAGMA {name}={value}")
            for name, wanted in REQUIRED_PRAGMAS.items():
                found = cursor.execute(f"PRAGMA {name}").fetchone()[0]
                if found != wanted:
                    raise StoreError(f"SQLite refused PRAGMA {name}={wanted} (it is {found}); a network file system, perhaps")
            cursor.close()

        return engine

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction; committed when the block ends, rolled back when it raises."""
        with self.engine.connect() as connection:
            if self.is_sqlite:
                # The driver is in autocommit mode: a transaction that will write must say so at its start, since an
                # upgrade from a read fails without waiting.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                try:
                    yield connection
                except BaseException:
                    connection.exec_driver_sql("ROLLBACK")
                    raise
                connection.exec_driver_sql("COMMIT")
            else:
                with connection.begin():
                    yield connection

    def clock(self, connection: Connection) -> float:
        """Seconds; the server's own clock on PostgreSQL, this host's on SQLite, which is one host."""
        if self.is_sqlite:
            return time.time()
        return float(connection.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())

    def migrate(self) -> None:
        """Bring the schema to the newest revision."""
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["engine"] = self.engine
        command.upgrade(config, "head")

    def revision(self) -> str | None:
        from alembic.runtime.migration import MigrationContext

        with self.read() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def ping(self) -> None:
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
