"""What a worker knows of the sessions of the others, which are other processes here too."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import psycopg2
import psycopg2.extensions
import pytest

from server.errors import TooManyConnections
from server.postgres.database import Database
from server.postgres.sessions_of_workers import SessionsOfWorkers
from server.settings import Settings
from tests.support.engines import make_threads
from tests.support.live_server import ROOT, wait_until
from tests.support.postgres import Postgres

# Another worker: it has inherited the file, has a session until it gets a line, and none from then on.
WORKER = """
import sys
from server.postgres.sessions_of_workers import SessionsOfWorkers
workers = SessionsOfWorkers()
workers._file = int(sys.argv[1])
workers.mark(True)
print("has one", flush=True)
sys.stdin.readline()
workers.mark(False)
print("has none", flush=True)
sys.stdin.readline()
"""


@contextlib.contextmanager
def another_worker(workers: SessionsOfWorkers) -> Iterator[subprocess.Popen[str]]:
    """Start another worker, and wait until it has a session."""
    assert workers._file is not None
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(workers._file)],
        cwd=ROOT,
        pass_fds=[workers._file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "has one\n"
        yield process
        process.kill()


def test_a_worker_knows_whether_another_one_has_sessions() -> None:
    workers = SessionsOfWorkers()
    assert not workers.others_have_some()
    workers.mark(True)
    assert not workers.others_have_some()  # its own do not count
    with another_worker(workers) as first, another_worker(workers) as second:
        assert workers.others_have_some()
        workers.mark(False)
        assert workers.others_have_some()
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.write("\n")
        first.stdin.flush()
        assert first.stdout.readline() == "has none\n"
        assert workers.others_have_some()
        second.kill()
        second.wait()
        assert not workers.others_have_some()


@pytest.fixture
def exhausted(settings: Settings, postgres: Postgres) -> Iterator[Settings]:
    """Return settings with which no connection is free."""
    postgres.run("CREATE ROLE exhausted LOGIN PASSWORD 'exhausted' CONNECTION LIMIT 1")
    dsn = psycopg2.extensions.make_dsn(settings.dsn, user="exhausted", password="exhausted")
    held = psycopg2.connect(dsn)
    yield replace(settings, database_url=dsn)
    held.close()
    wait_until("it is closed", lambda: not postgres.run("SELECT FROM pg_stat_activity WHERE usename = 'exhausted'"))
    postgres.run("DROP ROLE exhausted")


async def test_sessions_of_another_worker_may_hold_the_connections(exhausted: Settings) -> None:
    workers, threads = SessionsOfWorkers(), make_threads(exhausted)
    async with Database(exhausted, threads, workers) as database:
        with another_worker(workers) as other:
            await database.ping()
            other.kill()
            other.wait()
            with pytest.raises(TooManyConnections):
                await database.ping()
    threads.close()


async def test_a_worker_with_a_session_marks_itself(settings: Settings) -> None:
    workers, threads = SessionsOfWorkers(), make_threads(settings)
    async with Database(settings, threads, workers) as database:
        async with database.session(), database.control_session():
            assert workers._marked
        assert not workers._marked
        await database.ping()
        assert not workers._marked
    threads.close()
