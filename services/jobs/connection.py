"""The connection to SQLite or PostgreSQL, its transactions, and the migrations.

Invariant: a write holds its lock from the first statement on (``BEGIN IMMEDIATE`` in SQLite, the job's row ``FOR UPDATE`` in
PostgreSQL), so what it read is still true when it commits. A SQLite file that did not take its pragmas is refused, because
acknowledged jobs would then be at risk.
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
from sqlalchemy import Connection, Engine, create_engine, event, text

from cluster.errors import HoldfastError

BUSY_TIMEOUT_MS = 30_000
REQUIRED_PRAGMAS = {"busy_timeout": BUSY_TIMEOUT_MS, "foreign_keys": 1, "journal_mode": "wal", "synchronous": 2}
"""Of every SQLite connection; synchronous 2 is FULL: a committed transaction survives a loss of power."""
MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x686F6C64
MAX_MESSAGE_CHARACTERS = 8000


class StoreError(HoldfastError):
    """The database cannot hold the jobs: pragmas that did not take, an unknown kind of URL, missing migrations."""

    reason = "store_unusable"


class StoreUnavailableError(HoldfastError):
    """The database does not answer, or is not writable; nothing was changed."""

    reason = "store_unavailable"


class Database:
    """One database; safe in several threads and processes, and after a fork.

    ``lease_clock`` replaces the clock of the leases, for tests.
    """

    def __init__(self, url: str, *, lease_clock: Callable[[], float] | None = None):
        self.url = _checked_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _make_engine(self.url, self.is_sqlite)
        self._lease_clock = lease_clock

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that only reads; in SQLite all its statements see one state."""
        with _translated(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction; committed when the block ends, rolled back when it raises."""
        with _translated(), self.engine.connect() as connection:
            connection = connection.execution_options(holdfast_write=True)
            with connection.begin():
                yield connection

    def clock(self, connection: Connection) -> tuple[str, float]:
        """The clock that leases run by, and its seconds: the server's own, or for SQLite, which is one host, the time since
        its boot. Wall clocks never count. A lease of another clock (another boot) is over."""
        if self._lease_clock is not None:
            return "given", self._lease_clock()
        if self.is_sqlite:
            return _boot_id(), time.clock_gettime(time.CLOCK_MONOTONIC)
        return "database", float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")))

    def migrate(self) -> None:
        """Bring the schema to the newest revision, all steps or none; safe when several processes do it at once."""
        from alembic import command

        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def ping(self) -> None:
        """Raise ``StoreUnavailableError`` or ``StoreError`` unless the schema is the newest and can be written."""
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        with self.write() as connection:
            if not self.is_sqlite and connection.scalar(text("SHOW transaction_read_only")) == "on":
                raise StoreUnavailableError("the database is read-only")
            found = MigrationContext.configure(connection).get_current_revision()
        wanted = ScriptDirectory.from_config(_alembic_config()).get_current_head()
        if found != wanted:
            raise StoreError(f"the database's schema is at revision {found}, this version needs {wanted}; run the migrations")

    def close(self) -> None:
        self.engine.dispose()


def now_text() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def clean_text(message: str | None) -> str | None:
    """Text that every database takes: no NUL, no lone surrogates, cut at ``MAX_MESSAGE_CHARACTERS``."""
    if message is None:
        return None
    message = _encodable(str(message))
    return message if len(message) <= MAX_MESSAGE_CHARACTERS else message[: MAX_MESSAGE_CHARACTERS - 4] + " ..."


def clean_json(value: Any) -> Any:
    """JSON that every database takes: numbers that are not finite become None, other objects their text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_encodable(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_json(item) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    return _encodable(str(value))


def _encodable(words: str) -> str:
    return words.replace("\x00", "\\0").encode("utf-8", "replace").decode("utf-8")


def _alembic_config() -> Any:
    """Alembic's configuration without a file: the migrations that are shipped with the package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _checked_url(url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise StoreError("the database URL cannot be read; use sqlite:////path/to/file.db or postgresql+psycopg://...") from error
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and parsed.database and parsed.database != ":memory:":
        return parsed
    raise StoreError(
        f"a database of kind {backend!r} without a file cannot hold the jobs; use sqlite:////path/to/file.db or postgresql+psycopg://..."
    )


def _make_engine(url: sa.URL, is_sqlite: bool) -> Engine:
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
        options |= {
            "pool_pre_ping": True,
            "connect_args": {"connect_timeout": 10, "options": server_options, "application_name": "holdfast"},
        }
    engine = create_engine(url, **options)
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
    for name, value in REQUIRED_PRAGMAS.items():
        cursor.execute(f"PRAGMA {name} = {value}").fetchall()
    found = {name: cursor.execute(f"PRAGMA {name}").fetchone()[0] for name in REQUIRED_PRAGMAS}
    cursor.close()
    wrong = [f"{name} is {value!r}, not {REQUIRED_PRAGMAS[name]!r}" for name, value in found.items() if value != REQUIRED_PRAGMAS[name]]
    if wrong:
        raise StoreError(f"the SQLite file did not take its settings ({', '.join(wrong)}); put it on a local disk")


def _begin_sqlite(connection: Connection) -> None:
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
        raise StoreUnavailableError(f"the database does not answer: {getattr(error, 'orig', None) or error}") from error


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "this host"
