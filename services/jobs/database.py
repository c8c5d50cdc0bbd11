"""The connection to SQLite or PostgreSQL, its transactions, and the migrations.

Invariant: a write is one transaction that holds its lock from the first statement on (``BEGIN IMMEDIATE`` in SQLite, the
job's row ``FOR UPDATE`` in PostgreSQL), so what it read is still true when it commits. A SQLite file that did not take its
pragmas is refused, because acknowledged jobs would then be at risk.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

from cluster.errors import HoldfastError

BUSY_TIMEOUT_MS = 30_000
PRAGMAS = {"busy_timeout": BUSY_TIMEOUT_MS, "foreign_keys": 1, "journal_mode": "wal", "synchronous": 2}
"""Of every SQLite connection; synchronous 2 is FULL: a committed transaction survives a loss of power."""
MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x686F6C64
MAX_MESSAGE_CHARACTERS = 8000


class StoreUnavailable(HoldfastError):
    """The database does not answer, or is not writable; nothing was changed."""

    reason = "store_unavailable"


class StoreUnfit(HoldfastError):
    """The database cannot hold the jobs: pragmas that did not take, an unknown kind of URL, missing migrations."""

    reason = "store_unfit"


class Database:
    """Engine and transactions of one store; safe for many threads, and after a fork."""

    def __init__(self, url: str, *, lease_clock: Callable[[], float] | None = None):
        self.url = _checked_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._lease_clock = lease_clock
        self._engine = _make_engine(self.url, self.is_sqlite)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads: several statements see one state (in PostgreSQL: each its newest)."""
        with _translated(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that writes; commits at the end, rolls back where something was raised."""
        with _translated(), self._engine.connect() as connection:
            connection = connection.execution_options(holdfast_write=True)
            with connection.begin():
                yield connection

    def lease_now(self, connection: sa.Connection) -> tuple[str, float]:
        """The clock that leases run by, and its seconds: the database's own, or this host's since its boot.

        Wall clocks of clients never count. On another boot or another clock a lease of before is over.
        """
        if self._lease_clock is not None:
            return "given", self._lease_clock()
        if self.is_sqlite:
            return _boot_id(), time.clock_gettime(time.CLOCK_MONOTONIC)
        return "database", float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")))

    def migrate(self) -> None:
        """Bring the schema to the newest revision, all steps or none; safe when several processes do it at once."""
        from alembic import command

        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def ping(self) -> None:
        """Raise ``StoreUnavailable`` or ``StoreUnfit`` unless the schema is the newest and can be written."""
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        with self.write() as connection:
            if not self.is_sqlite and connection.scalar(sa.text("SHOW transaction_read_only")) == "on":
                raise StoreUnavailable("the database is read-only")
            found = MigrationContext.configure(connection).get_current_revision()
        wanted = ScriptDirectory.from_config(alembic_config()).get_current_head()
        if found != wanted:
            raise StoreUnfit(f"the database's schema is at revision {found}, this version needs {wanted}; run the migrations")

    def close(self) -> None:
        self._engine.dispose()


def alembic_config() -> Any:
    """Alembic's configuration without a file: the migrations that are shipped with the package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def now() -> datetime:
    return datetime.now(UTC)


def clean_text(text: str | None) -> str | None:
    """Text that every database takes: no NUL, no lone surrogates, cut at ``MAX_MESSAGE_CHARACTERS``."""
    if text is None:
        return None
    text = str(text).replace("\x00", "\\0").encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 4] + " ..."


def clean_json(value: Any) -> Any:
    """JSON that every database takes: numbers that are not finite become None, other objects their text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_json_text(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    return _json_text(str(value))


def _json_text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _checked_url(text: str) -> sa.URL:
    try:
        url = sa.make_url(text)
    except sa.exc.ArgumentError as error:
        raise StoreUnfit("the database URL cannot be read; use sqlite:////path/to/file.db or postgresql+psycopg://...") from error
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and url.database and url.database != ":memory:":
        return url
    raise StoreUnfit(f"a database of kind {backend!r} cannot hold the jobs; use a SQLite file (sqlite:////path/to/file.db) or postgresql+psycopg://...")


def _make_engine(url: sa.URL, is_sqlite: bool) -> sa.Engine:
    options: dict[str, Any] = {
        "json_serializer": lambda value: json.dumps(clean_json(value), ensure_ascii=False, allow_nan=False),
        "pool_size": 10,
        "max_overflow": 40,
        "pool_timeout": 30,
    }
    if is_sqlite:
        Path(url.database).absolute().parent.mkdir(parents=True, exist_ok=True)
        options |= {"poolclass": sa.QueuePool, "connect_args": {"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False}}
    else:
        server_options = f"-c lock_timeout={BUSY_TIMEOUT_MS} -c idle_in_transaction_session_timeout=60000"
        options |= {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10, "options": server_options, "application_name": "holdfast"}}
    engine = sa.create_engine(url, **options)
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    event.listen(engine, "connect", _remember_process)
    event.listen(engine, "checkout", _refuse_foreign_process)
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    """Set the pragmas and read them back; transactions are begun by ``_begin_sqlite``, not by the driver."""
    connection.isolation_level = None
    cursor = connection.cursor()
    for name, value in PRAGMAS.items():
        cursor.execute(f"PRAGMA {name} = {value}").fetchall()
    found = {name: cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS}
    cursor.close()
    wrong = {name: value for name, value in found.items() if value != PRAGMAS[name]}
    if wrong:
        told = ", ".join(f"{name} is {value!r}, not {PRAGMAS[name]!r}" for name, value in wrong.items())
        raise StoreUnfit(f"the SQLite file did not take its settings ({told}); put it on a local disk")


def _begin_sqlite(connection: sa.Connection) -> None:
    """A reader that turns writer fails at once instead of waiting, so a writer says so at its beginning."""
    writes = connection.get_execution_options().get("holdfast_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _remember_process(connection: Any, record: Any) -> None:
    record.info["pid"] = os.getpid()


def _refuse_foreign_process(connection: Any, record: Any, proxy: Any) -> None:
    """A forked child opens its own connections instead of using its parent's."""
    if record.info["pid"] != os.getpid():
        record.dbapi_connection = proxy.dbapi_connection = None
        raise sa.exc.DisconnectionError("this connection belongs to another process")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
        raise StoreUnavailable(f"the database does not answer: {getattr(error, 'orig', None) or error}") from error


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "this host"
