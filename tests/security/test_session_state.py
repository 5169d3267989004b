"""A function of a view leaves state in its session: the next request on the same connection finds none of it.

Direct, where a connection that cannot be cleaned is closed, and behind a real PgBouncer, where the server's process
goes back to other clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from aiohttp.test_utils import TestClient, TestServer

from server.app import create_app
from server.settings import Settings
from tests.support.live_server import LiveServer, eventually, wait_until
from tests.support.pgbouncer import pgbouncer
from tests.support.postgres import Postgres
from tests.support.raw_http import Client as RawClient
from tests.support.raw_http import ask
from tests.support.waiting import sleeping_backends

Client = TestClient[Any, Any]


def unless(view: str, statement: str) -> str:
    """Return the statement in PL/pgSQL. It runs once: the planner of a transaction may call a function repeatedly."""
    return f"IF NOT EXISTS (SELECT FROM {view} WHERE name LIKE 'left%behind') THEN EXECUTE '{statement}'; END IF"


# What the function does, with an expression for what it leaves and its value in a new session.
LEFT = {
    "a lock": ("PERFORM pg_advisory_lock(42)", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0"),
    "a shared lock": (
        "PERFORM pg_advisory_lock_shared(1, 2)",
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'",
        "0",
    ),
    "a setting": (
        "PERFORM set_config('work_mem', '1MB', false)",
        "SELECT current_setting('work_mem')",
        "4MB",
    ),
    "a path": (
        "PERFORM set_config('search_path', 'information_schema', false)",
        "SELECT replace(current_setting('search_path'), ' ', '')",
        '"$user",public',
    ),
    "an encoding": (
        "PERFORM set_config('client_encoding', 'LATIN1', false)",
        "SELECT current_setting('client_encoding')",
        "UTF8",
    ),
    "a channel": ("LISTEN left_behind", "SELECT count(*) FROM pg_listening_channels()", "0"),
    "a cursor": (
        unless("pg_cursors", "DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1"),
        "SELECT count(*) FROM pg_cursors WHERE name <> 'sluice' AND name <> ''",
        "0",
    ),
    "a user": ("SET SESSION AUTHORIZATION left_behind", "SELECT session_user", "postgres"),
    "a role": ("SET ROLE left_behind", "SELECT current_user", "postgres"),
    "a statement": (
        unless("pg_prepared_statements", 'PREPARE "left; behind" AS SELECT 1'),
        "SELECT count(*) FROM pg_prepared_statements WHERE from_sql",
        "0",
    ),
    # The function below says what random() gives then.
    "a seed": ("PERFORM setseed(0.5)", "SELECT random() = seeded()", "false"),
}
STATE = ", ".join(f'({probe})::text AS "{name}"' for name, (_, probe, _) in LEFT.items())
NEW = {name: value for name, (_, _, value) in LEFT.items()}


def make(postgres: Postgres, name: str, body: str) -> None:
    """Create a view whose function does this, and one whose function the planner calls."""
    bodies = {"volatile": body, "immutable": f"PERFORM public.{name}_volatile()"}
    for volatility, statements in bodies.items():
        postgres.run(
            f"CREATE OR REPLACE FUNCTION public.{name}_{volatility}() RETURNS text LANGUAGE plpgsql {volatility} "
            f"AS $$ BEGIN {statements}; RETURN 'x'; END $$"
        )
    postgres.run(f"CREATE VIEW {name} AS SELECT {name}_volatile() AS x")
    # Functions that say that they are immutable may do everything all the same, in the planner.
    postgres.run(f"CREATE VIEW {name}_planned AS SELECT x FROM (VALUES ('x')) AS v (x) WHERE x = {name}_immutable()")


def make_leaving(postgres: Postgres) -> None:
    """Create views that leave everything that there is."""
    make(postgres, "leaving", "; ".join(body for name, (body, _, _) in LEFT.items() if name != "a statement"))
    make(postgres, "preparing", LEFT["a statement"][0])


@pytest.fixture
def left(postgres: Postgres) -> Iterator[Postgres]:
    """The database with a view of the state of the session, `state`, and the role `left_behind`."""
    with contextlib.closing(postgres.connect()) as other, other.cursor() as cursor:
        cursor.execute("SELECT setseed(0.5), random()")
        row = cursor.fetchone()
        assert row is not None
    postgres.run(f"CREATE FUNCTION seeded() RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT {row[1]!r}::float8'")
    postgres.run(f"CREATE VIEW state AS SELECT pg_backend_pid() AS pid, {STATE}")
    postgres.run("CREATE ROLE left_behind SUPERUSER")
    yield postgres
    postgres.run("DROP VIEW IF EXISTS state")
    for (function,) in postgres.run(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
    ):
        postgres.run(f"DROP FUNCTION {function} CASCADE")
    postgres.run("DROP ROLE left_behind")


@contextlib.asynccontextmanager
async def served(settings: Settings, **changes: Any) -> AsyncIterator[Client]:
    """Serve with few connections, so that requests share one."""
    few = replace(settings, parallel_readers=1, **changes)
    async with TestClient(TestServer(create_app(few))) as client:
        yield client


async def state(client: Client) -> dict[str, str]:
    """Return the state of the session of the next export."""
    async with client.get("/export/state.csv") as response:
        assert response.status == 200, await response.text()
        (row,) = csv.DictReader(io.StringIO(await response.text()))
        return row


PATHS = {
    "export": "/export/{}.csv",
    "planned export": "/export/{}_planned.csv",
    "json lines": "/export/{}.ndjson",
    "preview": "/relations/{}/preview",
    "explanation": "/relations/{}_planned?explain",
    "page": "/table/{}",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_nothing_is_left_for_the_next_request(settings: Settings, left: Postgres, path: str) -> None:
    make_leaving(left)
    async with served(settings) as client:
        for name in ("leaving", "preparing"):
            before = await state(client)
            async with client.get(path.format(name)) as response:
                assert response.status == 200, (name, await response.text())
                await response.read()
            after = await state(client)
            # Only a connection with statements of others is not used again.
            assert (before.pop("pid") == after.pop("pid")) is (name == "leaving")
            assert before == after == NEW, name


@pytest.mark.parametrize(("body", "status"), [("PERFORM 1 / 0", 500), ("PERFORM pg_sleep(60)", 504)])
async def test_nothing_is_left_by_a_request_that_fails(
    settings: Settings, left: Postgres, body: str, status: int
) -> None:
    make(left, "failing", f"PERFORM pg_advisory_lock(42), setseed(0.5); {body}")
    async with served(settings, statement_timeout=0.3) as client:
        before = await state(client)
        async with client.get("/export/failing.csv") as response:
            assert response.status == status
            await response.read()
        after = await state(client)
        # A statement that has to be cancelled costs the connection.
        assert (before.pop("pid") == after.pop("pid")) is (status == 500)
        assert before == after == NEW


async def test_nothing_is_left_by_a_client_that_leaves(settings: Settings, left: Postgres) -> None:
    make(left, "sleeping", "PERFORM pg_advisory_lock(42); PERFORM pg_sleep(60)")
    async with served(settings) as client:
        leaving = asyncio.ensure_future(client.get("/export/sleeping.csv"))
        await eventually("it sleeps", lambda: sleeping_backends(left))
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        held = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"
        await eventually("the session has ended", lambda: not left.run(held))


# --- what Sluice has prepared ------------------------------------------------------------------------------------


# Puts a statement with the same parameters, whose function fails, in the place of each of ours.
REPLACED = """
    DECLARE
        ours record;
        parameters text;
    BEGIN
        FOR ours IN SELECT name, cardinality(parameter_types) AS count FROM pg_prepared_statements WHERE NOT from_sql
        LOOP
            SELECT string_agg('$' || n || '::text', ', ') INTO parameters FROM generate_series(1, ours.count) AS n;
            EXECUTE 'DEALLOCATE ' || ours.name;
            EXECUTE format('PREPARE %I AS SELECT replacement(ARRAY[%s]::text[])', ours.name, parameters);
        END LOOP;
    END
"""


async def test_statements_that_take_the_place_of_ours_are_never_executed(settings: Settings, left: Postgres) -> None:
    left.run(
        "CREATE FUNCTION replacement(text[]) RETURNS text LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'it is executed'; END $$"
    )
    make(left, "replacing", REPLACED)
    async with served(settings) as client:
        before = await state(client)
        async with client.get("/export/replacing.csv") as response:
            assert response.status == 200
            await response.read()
        after = await state(client)
        assert before.pop("pid") != after.pop("pid")
        assert before == after == NEW


async def test_statements_of_ours_that_a_function_has_removed_fail_no_request(
    settings: Settings, left: Postgres
) -> None:
    # On more connections than a request has attempts.
    make(left, "removing", "DEALLOCATE ALL; PERFORM pg_sleep(0.1)")
    async with served(settings) as client:

        async def remove() -> int:
            async with client.get("/export/removing.csv") as response:
                await response.read()
                return response.status

        for _ in range(2):
            assert await asyncio.gather(*[remove() for _ in range(8)]) == [200] * 8
            assert await state(client) | {"pid": ""} == NEW | {"pid": ""}


async def test_a_connection_keeps_what_sluice_has_prepared(settings: Settings, left: Postgres) -> None:
    left.run("CREATE VIEW prepared AS SELECT pg_backend_pid() AS pid, count(*) AS count FROM pg_prepared_statements")
    found = []
    async with served(settings) as client:
        for _ in range(4):
            async with client.get("/export/prepared.csv") as response:
                found.append(await response.text())
    assert len({*found[1:]}) == 1
    assert int(found[1].rpartition(",")[2]) >= 3


# --- behind a pooler -----------------------------------------------------------------------------------------------


@pytest.fixture
def pooled(
    left: Postgres, start_live: Callable[..., LiveServer], database_url: str
) -> Iterator[tuple[LiveServer, str]]:
    """A server behind a PgBouncer with one process of the database, and the URI of that PgBouncer."""
    with pgbouncer(database_url, 1) as url:
        yield start_live(DATABASE_URL=url, PARALLEL_READERS="1", STATEMENT_TIMEOUT="0.5", PLAN_TIMEOUT="0"), url


def test_nothing_is_left_for_other_clients_of_a_pooler(pooled: tuple[LiveServer, str], left: Postgres) -> None:
    server, url = pooled
    make_leaving(left)
    make(left, "failing", "PERFORM pg_advisory_lock(42), setseed(0.5); EXECUTE 'PREPARE p AS SELECT 1'; PERFORM 1 / 0")
    make(
        left, "slow", "PERFORM pg_advisory_lock(42), setseed(0.5); EXECUTE 'PREPARE p AS SELECT 1'; PERFORM pg_sleep(9)"
    )
    cases = [(path.format(name), 200) for name in ("leaving", "preparing") for path in PATHS.values()]
    cases += [("/export/failing.csv", 500), ("/relations/failing_planned?explain", 500)]
    with contextlib.closing(psycopg2.connect(url)) as other, other.cursor() as cursor:
        other.autocommit = True
        # Of another client, which PgBouncer cannot know: it stays.
        cursor.execute("PREPARE of_another AS SELECT 1")
        cursor.execute("SELECT pid FROM state")
        ((pid,),) = cursor.fetchall()
        for path, status in cases:
            assert ask(server, path).status == status, path
            columns = ", ".join(f'"{name}"' for name in LEFT)
            cursor.execute(f"SELECT pid, {columns} FROM state")
            ((found, *values),) = cursor.fetchall()
            expected = NEW | {"a statement": "1"}
            assert (found, dict(zip(LEFT, values, strict=True))) == (pid, expected), path
        assert ask(server, "/export/slow.csv").status == 504
        held = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"
        wait_until("PgBouncer has closed the connection", lambda: not left.run(held))


def test_a_client_that_leaves_leaves_nothing_behind_a_pooler(pooled: tuple[LiveServer, str], left: Postgres) -> None:
    server, _ = pooled
    make(left, "holding", "PERFORM pg_advisory_lock(42)")
    left.run("CREATE VIEW held AS SELECT x, repeat('x', 1000) FROM holding, generate_series(1, 1000000)")
    held = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"
    with RawClient(server.connect(receive_buffer=4096)) as client:
        client.send("/export/held.csv")
        wait_until("it holds the lock", lambda: left.run(held))
    wait_until("it does not", lambda: not left.run(held))
    assert ask(server, "/export/users.csv?limit=1").status == 200
