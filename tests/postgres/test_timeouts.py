"""The time-outs of the database role: which of them bound a session, and which are lifted because downloads take long.

The rule: of two limits for a statement or a lock the shorter one is in force; a limit of the whole transaction or of an
idle one is lifted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest

from server import errors
from server.postgres.rows import Select
from server.process.embedded import EmbeddedPostgres
from server.settings import Settings
from tests.support.engines import open_database
from tests.support.live_server import LiveServer, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask
from tests.support.rows import encoder, opened, read_all
from tests.support.saved_exports import download, saved

NAMES = ("statement_timeout", "lock_timeout", "transaction_timeout", "idle_in_transaction_session_timeout")
IN_FORCE = "SELECT " + ", ".join(f"current_setting('{name}', true) AS \"{name}\"" for name in NAMES)


def with_role(settings: Settings, **given: str) -> Settings:
    """Settings of a role with these settings of PostgreSQL."""
    options = " ".join(f"-c {name}={value}" for name, value in given.items())
    return replace(settings, database_url=psycopg2.extensions.make_dsn(settings.dsn, options=options))


async def in_force(settings: Settings, *, opened_whole: bool = False) -> dict[str, str]:
    """Return the time-outs of a session. opened_whole: after its locks were taken, else before."""
    async with open_database(settings) as database, opened(database) as session:
        if opened_whole:
            await session.explain("SELECT 1")
        return (await session.query(IN_FORCE))[0]


# --- which limit is in force ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "ours", "expected"),
    [
        ("0", 600, "10min"),
        ("0", 0, "0"),
        ("1h", 0, "1h"),
        ("1h", 600, "10min"),
        ("10min", 601, "10min"),
        ("90000", 600, "90s"),
        ("7s", 600, "7s"),
        ("2min", 600, "2min"),
        ("1500ms", 2.5, "1500ms"),
        ("1500ms", 1.25, "1250ms"),
        ("1d", 2_000_000, "1d"),
        ("2147483647", 0, "2147483647ms"),
    ],
)
@pytest.mark.parametrize("name", ["statement_timeout", "lock_timeout"])
async def test_the_shorter_limit_is_in_force(
    settings: Settings, name: str, role: str, ours: float, expected: str
) -> None:
    # Without a limit of the statement, which would be one of the lock too.
    limits: dict[str, Any] = {"statement_timeout": 0.0, "lock_timeout": 0.0, name: ours}
    found = await in_force(replace(with_role(settings, **{name: role}), **limits))
    assert found[name] == expected


@pytest.mark.parametrize(("statement", "lock", "expected"), [(20, 60, "18s"), (20, 0, "18s"), (20, 10, "10s")])
async def test_a_wait_for_a_lock_ends_before_its_statement(
    settings: Settings, statement: float, lock: float, expected: str
) -> None:
    found = await in_force(replace(settings, statement_timeout=statement, lock_timeout=lock))
    assert found["lock_timeout"] == expected


async def test_the_limits_end_with_the_opening_and_the_lock_timeout_of_the_role_stays(settings: Settings) -> None:
    role = dict.fromkeys(NAMES, "77s")
    found = await in_force(with_role(settings, **role), opened_whole=True)
    assert found == dict.fromkeys(NAMES, "0") | {"lock_timeout": "77s"}


async def test_the_settings_of_the_role_are_back_after_the_transaction(settings: Settings, postgres: Postgres) -> None:
    role = dict.fromkeys(NAMES, "77s")
    async with open_database(with_role(settings, **role)) as database:
        async with opened(database) as session:
            await session.explain("SELECT 1")
            connection, pid = session.connection, session.backend_pid
        assert connection.idle
        async with opened(database) as session:
            assert session.backend_pid == pid
            assert (await session.query(IN_FORCE))[0]["lock_timeout"] == "3s"


# --- a shorter statement_timeout -----------------------------------------------------------------------------------


async def test_the_statement_timeout_of_the_role_bounds_the_wait_for_rows(settings: Settings) -> None:
    async with open_database(with_role(settings, statement_timeout="300ms")) as database, opened(database) as session:
        await session.explain("SELECT 1")
        started = time.monotonic()
        with session.rows(encoder(native=True)) as rows:
            # Longer than the limit as a whole: it is one for the next rows, as STATEMENT_TIMEOUT is. PostgreSQL sends
            # rows of this size at once.
            wide = "SELECT repeat('x', 10000), pg_sleep(0.05)::text FROM generate_series(1, 10)"
            assert (await read_all(rows, Select(wide, (), 1))).count(b"\n") == 10
            assert time.monotonic() - started > 0.3
            with pytest.raises(errors.QueryTimeout) as caught:
                await read_all(rows, "SELECT pg_sleep(60)::text")
    assert time.monotonic() - started < 30
    assert caught.value.detail == "PostgreSQL returned no rows for 0.3 seconds."
    assert "statement_timeout of the database role" in (caught.value.hint or "")


async def test_the_statement_timeout_of_the_role_bounds_the_opening(settings: Settings) -> None:
    async with open_database(with_role(settings, statement_timeout="300ms")) as database, opened(database) as session:
        with pytest.raises(errors.QueryTimeout, match=r"0\.3 seconds"):
            await session.query("SELECT pg_sleep(60)")


# --- limits that are lifted -----------------------------------------------------------------------------------------

LIFTED = {"transaction_timeout": "400ms", "idle_in_transaction_session_timeout": "400ms"}
# Rows for several readers, which PostgreSQL sends as large values, so that all of them wait for the client. And rows
# that take as long as the limits.
TABLES = """
CREATE TABLE large (n int, filler text) WITH (fillfactor = 20, autovacuum_enabled = off);
INSERT INTO large SELECT n, filler FROM (SELECT repeat('x', 4000) AS filler) AS one, generate_series(1, 20000) AS n;
ANALYZE large;
CREATE VIEW slow AS SELECT n, pg_sleep(0.1)::text AS x FROM generate_series(1, 6) AS n
"""
FILLER = b"x" * 4000
OWNERS = {"role": "ROLE limited", "database": "DATABASE limited"}


@pytest.fixture(params=OWNERS)
def limited_url(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[str]:
    """The URI of a database with these relations that has these limits, or with a role that has them."""
    postgres.run("CREATE DATABASE limited")
    postgres.run("CREATE ROLE limited LOGIN SUPERUSER")
    try:
        url = psycopg2.extensions.make_dsn(postgres.dsn, dbname="limited")
        with closing(psycopg2.connect(url)) as connection:
            connection.cursor().execute(TABLES)
            connection.commit()
        for name, value in LIFTED.items():
            postgres.run(f"ALTER {OWNERS[request.param]} SET {name} = '{value}'")
        yield psycopg2.extensions.make_dsn(url, user="limited")
    finally:
        postgres.run("DROP DATABASE limited WITH (FORCE)")
        postgres.run("DROP ROLE limited")


def test_a_download_takes_longer_than_the_limits_of_a_transaction(
    start_live: Callable[..., LiveServer], postgres: Postgres, limited_url: str
) -> None:
    server = start_live(DATABASE_URL=limited_url, PARALLEL_READERS="3")
    with Client(server.connect(receive_buffer=65536)) as client:
        client.send("/export/large.csv")
        # Of all three readers, which wait for the client.
        old = (
            "SELECT count(*) FILTER (WHERE clock_timestamp() - xact_start > interval '600 ms') FROM pg_stat_activity "
            "WHERE datname = 'limited' AND application_name = 'sluice' AND query LIKE 'SELECT source.%'"
        )
        wait_until("the transactions are older than their limit", lambda: postgres.run(old) == [(3,)])
        answer = client.read()
    assert answer.ending == "terminator"
    assert answer.body == b"n,filler\n" + b"".join(b"%d,%s\n" % (n, FILLER) for n in range(1, 20001))
    slow = b"n,x\n" + b"".join(b'%d,""\n' % n for n in range(1, 7))
    assert ask(server, "/export/slow.csv").body == slow
    assert download(server, saved(server, "slow.csv")["exportId"]).body == slow


async def test_a_server_without_the_newest_of_these_settings(folder: Path, settings: Settings) -> None:
    with EmbeddedPostgres(folder / "postgres", version=16, settings={"fsync": "off"}) as old:
        found = await in_force(replace(settings, database_url=old.uri), opened_whole=True)
        assert found == dict.fromkeys(NAMES, "0") | {"transaction_timeout": None}
        limited = with_role(replace(settings, database_url=old.uri), statement_timeout="5s", lock_timeout="1s")
        found = await in_force(limited)
        assert (found["statement_timeout"], found["lock_timeout"]) == ("5s", "1s")


async def test_a_parallel_plan_takes_longer_than_the_limit_of_a_transaction(settings: Settings) -> None:
    limited = with_role(settings, transaction_timeout="500ms", debug_parallel_query="on")
    async with open_database(limited) as database, opened(database) as session:
        await session.explain("SELECT 1")
        with session.rows(encoder(native=True)) as rows:
            rows.start(Select("SELECT n, pg_sleep(0.1)::text FROM generate_series(1, 10) AS n"))
            data = b""
            async with asyncio.timeout(30):
                while rows.pending:
                    data += (await rows.read(1 << 16)).data
    assert data.count(b"\n") == 10
