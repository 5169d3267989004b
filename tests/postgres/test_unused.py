"""Connections that a worker does not use: kept for the next session, and given up when others need room."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psycopg2
import psycopg2.extensions
import pytest

from server import errors
from server.postgres import unused
from server.postgres.database import Database
from server.postgres.sessions_of_workers import SessionsOfWorkers
from server.settings import Settings
from tests.support.engines import make_threads
from tests.support.live_server import LiveServer, eventually, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask
from tests.support.workers import another_worker

# A role has this many connections. One worker alone could use more.
LIMIT = 4
CONNECTED = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'limited'"


@pytest.fixture
def limited(settings: Settings, postgres: Postgres) -> Iterator[Settings]:
    """Return settings with which Sluice connects as a role with few connections."""
    postgres.run(f"CREATE ROLE limited LOGIN PASSWORD 'limited' CONNECTION LIMIT {LIMIT}")
    dsn = psycopg2.extensions.make_dsn(settings.dsn, user="limited", password="limited")
    yield replace(settings, database_url=dsn, parallel_readers=1)
    postgres.run("DROP OWNED BY limited; DROP ROLE limited")


async def use(database: Database, count: int) -> None:
    """Use so many connections at once."""
    async with contextlib.AsyncExitStack() as sessions:
        for _ in range(count):
            await (await sessions.enter_async_context(database.session())).open()


async def test_connections_that_are_not_needed_for_long_are_closed_except_the_last_one(
    limited: Settings, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unused, "LOOK_SECONDS", 0.02)
    threads = make_threads(limited)
    async with Database(limited, threads) as database:
        await use(database, 3)
        await asyncio.sleep(0.1)  # not a wait: the time in which none may be closed
        assert postgres.run(CONNECTED) == [(3,)]
        monkeypatch.setattr(unused, "UNUSED_SECONDS", 0.0)
        await eventually("one is kept", lambda: postgres.run(CONNECTED) == [(1,)])
        await database.ping()
        await eventually("that of the health check is kept too", lambda: postgres.run(CONNECTED) == [(2,)])
    threads.close()


async def test_kinds_of_work_in_one_worker_give_way_to_each_other(limited: Settings, postgres: Postgres) -> None:
    threads = make_threads(limited)
    async with Database(limited, threads) as database:
        await use(database, LIMIT)
        assert postgres.run(CONNECTED) == [(LIMIT,)]
        await database.ping()
        await use(database, LIMIT)  # that of the health check too
    threads.close()


async def test_nobody_waits_if_no_worker_can_give_way(limited: Settings) -> None:
    threads = make_threads(limited)
    async with Database(limited, threads, SessionsOfWorkers()) as database:
        with contextlib.ExitStack() as held:
            for _ in range(LIMIT):
                held.enter_context(contextlib.closing(psycopg2.connect(limited.dsn)))
            async with asyncio.timeout(1.5):
                with pytest.raises(errors.TooManyConnections):
                    await use(database, 1)
                with pytest.raises(errors.TooManyConnections):
                    await database.ping()
    threads.close()


async def test_a_connection_is_opened_as_soon_as_there_is_room(limited: Settings) -> None:
    threads, workers = make_threads(limited), SessionsOfWorkers()
    async with Database(limited, threads, workers) as database:
        with contextlib.ExitStack() as held:
            for _ in range(LIMIT):
                held.enter_context(contextlib.closing(psycopg2.connect(limited.dsn)))
            with another_worker(workers) as other:
                waiting = asyncio.create_task(use(database, 1))
                await eventually("it has asked", workers.last_asked)
                held.close()
                await waiting
                other.kill()
    threads.close()


@pytest.mark.slow
def test_connections_that_a_burst_has_left_at_one_worker_are_given_to_another(
    start_live: Callable[..., LiveServer], limited: Settings, postgres: Postgres
) -> None:
    postgres.run("CREATE VIEW a_moment AS SELECT pg_sleep(0.3)::text AS x; GRANT SELECT ON a_moment TO limited")
    server = start_live(DATABASE_URL=limited.dsn, PARALLEL_READERS="1", WEB_CONCURRENCY="2")
    wait_until("there are two workers", lambda: len(server.workers()) == 2)
    first, second = server.workers()
    # Also those of the health checks, which would give way.
    postgres.run("SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE usename = 'limited'")
    second.suspend()
    with ThreadPoolExecutor(LIMIT) as threads:
        answers = list(threads.map(lambda _: ask(server, "/export/a_moment.csv").status, range(LIMIT)))
    assert answers == [200] * LIMIT
    assert postgres.run(CONNECTED) == [(LIMIT,)]
    second.resume()
    first.suspend()
    with Client(server.connect()) as client:
        client.send("/export/a_moment.csv")
        port = client.socket.getsockname()[1]
        wait_until(
            "the other worker has it", lambda: port in {c.raddr.port for c in second.net_connections() if c.raddr}
        )
        first.resume()
        assert client.read().status == 200
