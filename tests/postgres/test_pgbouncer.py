"""Behind a real PgBouncer in transaction mode: settings end with the transaction; cancelling finds its backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest

from tests.support.live_server import LiveServer, wait_until
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask


@pytest.fixture(params=[2])
def pooled_url(request: pytest.FixtureRequest, database_url: str) -> Iterator[str]:
    """The URI of the database through a PgBouncer whose pool has `request.param` server connections."""
    with pgbouncer(database_url, request.param) as url:
        yield url


def test_settings_end_with_the_transaction_of_the_export(
    pooled_url: str, start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live(DATABASE_URL=pooled_url)
    expected = postgres.copy("SELECT * FROM users")
    for _ in range(5):
        assert ask(server, "/export/users.csv").body == expected
    other = psycopg2.connect(pooled_url)
    other.autocommit = True
    with other.cursor() as cursor:
        for _ in range(4):
            cursor.execute(
                "SELECT current_setting('statement_timeout'), current_setting('jit'), current_setting('datestyle')"
            )
            assert cursor.fetchone() == ("0", "on", "ISO, MDY")
    other.close()


def test_nothing_stays_prepared_behind_a_pooler(
    pooled_url: str, start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    # The next transaction may run on another server, which does not know the statement.
    server = start_live(DATABASE_URL=pooled_url)
    expected = postgres.copy("SELECT * FROM users")
    for _ in range(3):
        assert ask(server, "/export/users.csv").body == expected
    connections = [psycopg2.connect(pooled_url) for _ in range(2)]
    with contextlib.closing(connections[0]), contextlib.closing(connections[1]):
        pids = set()
        for other in connections:  # both transactions stay open, so these are both servers of the pool
            with other.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid(), (SELECT count(*) FROM pg_prepared_statements)")
                row = cursor.fetchone()
                assert row is not None
                pids.add(row[0])
                assert row[1] == 0
    assert len(pids) == 2


def test_a_client_that_leaves_has_its_query_cancelled(
    pooled_url: str, start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live(DATABASE_URL=pooled_url)
    postgres.run("CREATE VIEW slow AS SELECT pg_sleep(60)::text AS x")
    running = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT source.%' AND wait_event = 'PgSleep'"
    with Client(server.connect()) as client:
        client.send("/export/slow.csv")
        wait_until("the query runs", lambda: bool(postgres.run(running)))
    wait_until("the query is cancelled", lambda: not postgres.run(running))
    assert ask(server, "/export/revenue_by_country.csv").body == postgres.copy("SELECT * FROM revenue_by_country")


@pytest.mark.parametrize("pooled_url", [1, 2, 6], indirect=True)
def test_readers_that_get_no_connection_delay_no_export(
    pooled_url: str, start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    # Readers that the pool keeps waiting never start. The first reader reads everything, and they end with it.
    server = start_live(DATABASE_URL=pooled_url, PARALLEL_READERS="3")
    postgres.run("CREATE TABLE large WITH (fillfactor = 10) AS SELECT n, md5(n::text) FROM generate_series(1, 16000) n")
    postgres.run("ANALYZE large")
    right = postgres.copy("SELECT * FROM large")
    for number in range(4):
        answer = ask(server, "/export/large.csv", headers={"X-Request-Id": f"pooled-{number}"})
        assert (answer.status, answer.ending) == (200, "terminator")
        assert answer.body == right
        assert server.export_line(f"pooled-{number}")["scan"] == "cursor, block ranges"
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda _: ask(server, "/export/large.csv"), range(6)))
    assert [(answer.status, answer.ending, answer.body == right) for answer in answers] == [
        (200, "terminator", True)
    ] * 6
    # The pool is complete again: the transaction of another client gets a connection.
    with contextlib.closing(psycopg2.connect(pooled_url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchone() == (1,)


@pytest.mark.parametrize("pooled_url", [1, 6], indirect=True)
def test_a_client_that_leaves_frees_the_connections_of_all_readers(
    pooled_url: str, start_live: Callable[..., LiveServer], postgres: Postgres
) -> None:
    server = start_live(DATABASE_URL=pooled_url, PARALLEL_READERS="3")
    postgres.run("CREATE TABLE one AS SELECT repeat('x', 4000) AS filler")
    postgres.run("CREATE TABLE large AS SELECT n, filler FROM one, generate_series(1, 96000) AS n; ANALYZE large")
    running = (
        "SELECT 1 FROM pg_stat_activity "
        "WHERE query LIKE '%FROM ONLY%ctid%' AND state <> 'idle' AND pid <> pg_backend_pid()"
    )
    with Client(server.connect(receive_buffer=4096)) as client:
        client.send("/export/large.csv")
        wait_until("it is being read", lambda: bool(postgres.run(running)))
    wait_until("no query is left", lambda: not postgres.run(running))
    assert ask(server, "/export/revenue_by_country.csv").body == postgres.copy("SELECT * FROM revenue_by_country")
