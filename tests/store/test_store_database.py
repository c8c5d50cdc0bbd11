"""The database under the store: pragmas, migrations, processes, and what happens when it is away."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from services.jobs import connection
from services.jobs.connection import Database, StoreError, StoreUnavailableError
from services.jobs.store import JobStore
from services.jobs.tables import metadata
from tests.store.conftest import job_spec


def test_migrations_and_tables_agree(url):
    database = Database(url)
    with database.read() as opened:
        differences = compare_metadata(MigrationContext.configure(opened, opts={"compare_type": True}), metadata)
    database.close()
    assert differences == []


def test_a_migrated_store_answers_and_an_empty_one_says_what_it_lacks(store, backend, request, tmp_path):
    store.ping()
    store.migrate()
    store.ping()
    empty = JobStore(request.getfixturevalue("postgres").database(migrated=False) if backend == "postgres" else f"sqlite:///{tmp_path / 'empty.db'}")
    with pytest.raises(StoreError, match="run the migrations"):
        empty.ping()
    empty.close()


def _migrate(url: str) -> None:
    store = JobStore(url)
    store.migrate()
    store.ping()
    store.close()


def test_several_processes_may_migrate_at_once(backend, request, tmp_path):
    url = request.getfixturevalue("postgres").database(migrated=False) if backend == "postgres" else f"sqlite:///{tmp_path / 'new.db'}"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_migrate, args=(url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_migration_that_fails_leaves_nothing_behind(backend, request, tmp_path, monkeypatch):
    url = request.getfixturevalue("postgres").database(migrated=False) if backend == "postgres" else f"sqlite:///{tmp_path / 'half.db'}"
    from alembic.operations import Operations

    original, calls = Operations.add_column, []

    def broken(self, *args, **options):
        calls.append(args)
        raise RuntimeError("killed here")

    monkeypatch.setattr(Operations, "add_column", broken)
    store = JobStore(url)
    with pytest.raises(RuntimeError, match="killed here"):
        store.migrate()
    with store.database.read() as opened:
        assert calls and sa.inspect(opened).get_table_names() == []
    monkeypatch.setattr(Operations, "add_column", original)
    store.migrate()
    store.ping()
    store.close()


def test_sqlite_runs_with_its_pragmas(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'a.db'}")
    with database.write() as opened:
        found = {name: opened.exec_driver_sql(f"PRAGMA {name}").scalar() for name in connection.REQUIRED_PRAGMAS}
    database.close()
    assert found == {"busy_timeout": 30_000, "foreign_keys": 1, "journal_mode": "wal", "synchronous": 2}


@pytest.mark.parametrize(("name", "wrong"), [("journal_mode", "nonsense"), ("synchronous", 7), ("foreign_keys", 9)])
def test_sqlite_that_does_not_take_a_pragma_is_refused(tmp_path, monkeypatch, name, wrong):
    monkeypatch.setitem(connection.REQUIRED_PRAGMAS, name, wrong)
    store = JobStore(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(StoreError, match=name):
        store.migrate()
    store.close()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://x/y", "nothing at all"])
def test_a_database_that_cannot_hold_jobs_is_refused(url):
    with pytest.raises(StoreError, match="sqlite:"):
        JobStore(url)


def test_a_plain_postgresql_url_means_our_driver():
    assert Database("postgresql://u@h/d").url.drivername == "postgresql+psycopg"


def test_a_database_that_is_away_is_told_as_such(tmp_path):
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        JobStore(f"postgresql+psycopg://nobody@/none?host={tmp_path}").list_jobs()
    folder = tmp_path / "folder.db"
    folder.mkdir()
    with pytest.raises(StoreUnavailableError):
        JobStore(f"sqlite:///{folder}").list_jobs()


def test_a_forked_child_opens_its_own_connections(store, make_job):
    job = make_job()
    store.get_job(job.id)
    child = os.fork()
    if child == 0:
        try:
            store.append_event(job.id, kind="log", level="info", message="from the child")
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.append_event(job.id, kind="log", level="info", message="from the parent")
    assert [event.message for event in store.list_events(job.id)][-2:] == ["from the child", "from the parent"]


WRITER = """
import sys
from services.jobs.store import JobStore
from tests.store.conftest import job_spec
store = JobStore(sys.argv[1])
for number in range(100000):
    job, _ = store.create_job(job_spec(f"job{number}"), resolved={}, idempotency_key=f"key{number}", request_hash="h")
    print(job.id, flush=True)
"""


def test_what_was_acknowledged_before_a_kill_is_there_after_it(url):
    """SIGKILL in the middle of submissions, three times: no acknowledged job is missing, and the file is whole."""
    acknowledged: set[str] = set()
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True, cwd=os.getcwd())
        assert process.stdout is not None
        for _ in range(15):
            acknowledged.add(process.stdout.readline().strip())
        process.kill()
        acknowledged |= {line.strip() for line in process.stdout if len(line) == 37}
        process.wait(10)
        process.stdout.close()
    store = JobStore(url)
    stored = {job.id for job in store.jobs_in(["queued"])}
    store.close()
    assert len(acknowledged) >= 15 and acknowledged <= stored
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as opened:
            assert opened.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_looking_at_many_jobs_costs_few_queries(store, make_job):
    for number in range(12):
        make_job(f"job{number}")
    queries = []
    sa.event.listen(store.database.engine, "before_cursor_execute", lambda *args: queries.append(args[2]))
    assert len(store.jobs_in(["queued"])) == 12
    assert len([text for text in queries if text.startswith("SELECT")]) == 2
    started = time.perf_counter()
    assert store.next_queued().name == "job0"
    assert time.perf_counter() - started < 1.0


__all__ = ["job_spec"]
