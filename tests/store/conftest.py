"""Stores to test: every test runs on SQLite and on a PostgreSQL that is started here, on a socket in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.spec.job import JobSpec
from services.jobs.store import JobStore

DEADLINE_S = 60.0


def _postgres_binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).parent if on_path else None


def _user() -> str | None:
    """PostgreSQL refuses to run as root: somebody else to be, or None for whoever runs the tests."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    return None


class Postgres:
    """A server of our own; ``database()`` makes a migrated database in it."""

    def __init__(self, binaries: Path):
        self._binaries = binaries
        self._folder = Path(tempfile.mkdtemp(prefix="hf-pg-", dir="/tmp"))
        self._user = _user()
        if self._user is not None:
            entry = pwd.getpwnam(self._user)
            os.chown(self._folder, entry.pw_uid, entry.pw_gid)
        self._server: subprocess.Popen | None = None
        self._count = 0

    def _as_user(self, *command: str) -> list[str]:
        if self._user is None:
            return list(command)
        entry = pwd.getpwnam(self._user)
        return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", *command]

    def start(self) -> None:
        data = self._folder / "data"
        initdb = [str(self._binaries / "initdb"), "-D", str(data), "-U", "holdfast", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
        subprocess.run(self._as_user(*initdb), check=True, capture_output=True, cwd=self._folder, timeout=DEADLINE_S)
        settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self._folder}", "-c", "fsync=off", "-c", "max_connections=200"]
        with open(self._folder / "log", "w") as log:
            self._server = subprocess.Popen(
                self._as_user(str(self._binaries / "postgres"), "-D", str(data), *settings), stdout=log, stderr=log, cwd=self._folder
            )
        deadline = time.monotonic() + DEADLINE_S
        while subprocess.run([str(self._binaries / "pg_isready"), "-h", str(self._folder)], capture_output=True).returncode != 0:
            assert time.monotonic() < deadline, (self._folder / "log").read_text()[-2000:]
            time.sleep(0.1)
        self._sql("CREATE DATABASE template_holdfast")
        store = JobStore(self._url("template_holdfast"))
        store.migrate()
        store.close()

    def database(self, *, migrated: bool = True) -> str:
        self._count += 1
        name = f"test_{self._count}"
        self._sql(f"CREATE DATABASE {name}" + (" TEMPLATE template_holdfast" if migrated else ""))
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://holdfast@/{name}?host={self._folder}"

    def _sql(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(f"host={self._folder} user=holdfast dbname=postgres", autocommit=True) as connection:
            connection.execute(statement)

    def stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            try:
                self._server.wait(20)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait(10)
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    binaries = _postgres_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's server binaries are not installed")
    server = Postgres(binaries)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def backend(request) -> str:
    return request.param


@pytest.fixture
def url(backend, request, tmp_path) -> str:
    """The address of a database with the schema in it."""
    if backend == "postgres":
        return request.getfixturevalue("postgres").database()
    address = f"sqlite:///{tmp_path / 'store.db'}"
    store = JobStore(address)
    store.migrate()
    store.close()
    return address


@pytest.fixture
def open_store(url) -> Iterator[Callable[..., JobStore]]:
    """Opens stores over the same database, as other processes would; all are closed at the end."""
    opened: list[JobStore] = []

    def open_one(**options) -> JobStore:
        opened.append(JobStore(url, **options))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store) -> JobStore:
    return open_store()


def job_spec(name: str = "demo", **changes) -> JobSpec:
    stage = {"domain": {"kind": "arithmetic"}, "method": {"recipe": "grpo"}, "steps": 10}
    content = {"name": name, "model": {"path": "m"}, "stages": [{"name": "sums", **stage}, {"name": "more", **stage, "steps": 5}]}
    return JobSpec.model_validate(content | changes)


@pytest.fixture
def make_job(store):
    """``make_job(name)`` stores a job and returns its record."""

    def make(name: str = "demo", **changes):
        return store.create_job(job_spec(name, **changes), resolved={"model_path": "/m"}, idempotency_key=None, request_hash="h")[0]

    return make
