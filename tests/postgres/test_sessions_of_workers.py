"""What a worker knows of the sessions of the others, which are other processes here too."""

from __future__ import annotations

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
from tests.support.live_server import wait_until
from tests.support.postgres import Postgres
from tests.support.workers import another_worker


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
