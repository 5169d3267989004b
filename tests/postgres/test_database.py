"""Sessions, the connection pool and the translation of errors: a real PostgreSQL, a live server where it matters."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
from aiohttp.test_utils import TestClient, TestServer

from server import errors
from server.app import create_app
from server.postgres import connection
from server.postgres.connection import Connection
from server.postgres.connections import Connections
from server.postgres.database import Database
from server.postgres.rows import Rows, Select
from server.postgres.server_errors import error_for
from server.postgres.session import Session
from server.query.catalogue import RelationName
from server.query.dialect import Dialect
from server.settings import Settings
from tests.support.engines import encoders, open_database
from tests.support.live_server import LiveServer, eventually, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Client, ask
from tests.support.waiting import sleeping_backends

SLEEP = "SELECT pg_sleep(60)"


async def run(database: Database, sql: str) -> list[dict[str, Any]]:
    async with database.session() as session:
        return await session.query(sql)


@contextlib.asynccontextmanager
async def served(settings: Settings, **changes: Any) -> AsyncIterator[TestClient[Any, Any]]:
    """Run Sluice in this process, with these settings changed."""
    async with TestClient(TestServer(create_app(replace(settings, **changes)))) as client:
        yield client


# --- statements that end early ----------------------------------------------------------------------------------


async def test_a_statement_timeout_is_a_query_timeout(settings: Settings) -> None:
    async with open_database(replace(settings, statement_timeout=0.1)) as database:
        with pytest.raises(errors.QueryTimeout):
            await run(database, SLEEP)


async def test_a_statement_cancelled_in_the_server_is_query_cancelled(database: Database, postgres: Postgres) -> None:
    task = asyncio.create_task(run(database, SLEEP))
    await eventually("it sleeps", lambda: sleeping_backends(postgres))
    postgres.run("SELECT pg_cancel_backend(%s)", sleeping_backends(postgres))
    with pytest.raises(errors.QueryCancelled):
        await task


async def test_a_cancelled_task_stays_cancelled_and_its_statement_is_cancelled_too(
    database: Database, postgres: Postgres
) -> None:
    task = asyncio.create_task(run(database, SLEEP))
    await eventually("it sleeps", lambda: sleeping_backends(postgres))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    await eventually("the statement is cancelled", lambda: not sleeping_backends(postgres))


async def test_a_cancellation_that_arrives_together_with_the_result_is_not_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A wait that returns the result and drops the cancellation, as asyncio.wait_for of Python 3.11 does, would let the
    # export of a client that has left continue with its next statement.
    continued = False
    finish = connection._finish
    arrived = []

    def finish_and_cancel(waiter: asyncio.Future[None]) -> None:
        # The result is there, and the task that waits for it has not run yet.
        finish(waiter)
        arrived.append(task.cancel())

    async def work() -> None:
        nonlocal continued
        async with database.session() as session:
            await session.open()
            with monkeypatch.context() as patched:
                patched.setattr(connection, "_finish", finish_and_cancel)
                await session.query("SELECT pg_sleep(0.2)")
            continued = True

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert arrived == [True]
    assert not continued


async def test_a_task_can_be_cancelled_at_any_moment(database: Database, postgres: Postgres) -> None:
    postgres.run("CREATE VIEW sleepy AS SELECT pg_sleep(60)::text AS x")

    async def work() -> None:
        async with database.session() as session:
            await session.relation(RelationName("sleepy"))
            with session.rows(encoders(native=True).reader(Dialect(), "csv")) as rows:
                rows.start(Select("SELECT x FROM sleepy"))
                await rows.read(1)

    for attempt in range(100):
        task = asyncio.create_task(work())
        await asyncio.sleep(attempt / 10_000)  # not a wait: each task is cancelled at another point
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await eventually("nothing is left behind", lambda: not sleeping_backends(postgres))


async def test_discarding_a_connection_does_not_affect_the_next_one(database: Database, postgres: Postgres) -> None:
    # The connection of a cancelled statement is closed. If it were closed a second time, the event loop would stop
    # watching the descriptor, which the next connection may have by then: its answers would never arrive.
    closed, opened = asyncio.Event(), asyncio.Event()
    descriptors = []

    async def cancelled() -> None:
        async with database.session() as session:
            descriptors.append(session.connection.raw.fileno())
            try:
                await session.query(SLEEP)
            except asyncio.CancelledError:
                session.connection.close()
                closed.set()
                await opened.wait()
                raise

    task = asyncio.create_task(cancelled())
    await eventually("it sleeps", lambda: sleeping_backends(postgres))
    task.cancel()
    await closed.wait()
    async with database.session() as session:
        assert session.connection.raw.fileno() == descriptors[0]
        opened.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(2):
            assert await session.query("SELECT 1 AS one") == [{"one": 1}]


async def timed_out(database: Database, postgres: Postgres) -> None:
    with pytest.raises(errors.QueryTimeout):
        await run(database, SLEEP)


async def cancelled_by_the_server(database: Database, postgres: Postgres) -> None:
    # The SQLSTATE of a cancelled statement.
    with pytest.raises(errors.QueryCancelled):
        await run(database, "DO $$ BEGIN RAISE EXCEPTION 'cancelled' USING ERRCODE = '57014'; END $$")


async def cancelled_by_the_task(database: Database, postgres: Postgres) -> None:
    task = asyncio.create_task(run(database, "SELECT pg_sleep(0.1)"))
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def failed(database: Database, postgres: Postgres) -> None:
    with pytest.raises(errors.QueryFailed) as caught:
        await run(database, "SELECT 1 / 0")
    assert caught.value.sqlstate == "22012"


async def terminated(database: Database, postgres: Postgres) -> None:
    with pytest.raises(errors.ConnectionLost):
        await run(database, "SELECT pg_terminate_backend(pg_backend_pid())")


@pytest.mark.parametrize(
    ("end", "timeout"),
    [(timed_out, 0.05), *((end, 60.0) for end in (cancelled_by_the_server, cancelled_by_the_task, failed, terminated))],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_the_pool_is_complete_after_fifty_failures_of_a_kind(
    settings: Settings, postgres: Postgres, end: Callable[[Database, Postgres], Any], timeout: float
) -> None:
    connected = len(postgres.statements())
    few = replace(settings, max_concurrent_exports=3, parallel_readers=1, statement_timeout=timeout)
    async with open_database(few) as database:
        for _ in range(17):
            await asyncio.gather(*[end(database, postgres) for _ in range(3)])
        async with asyncio.timeout(2):
            assert await asyncio.gather(*[run(database, "SELECT 1 AS one") for _ in range(3)]) == [[{"one": 1}]] * 3
            await database.ping()
        # Three are for exports and eight for all other work, as the README says. A statement is cancelled without a
        # slot, over a connection that may still be closing.
        await eventually("no more are kept than slots", lambda: len(postgres.statements()) - connected <= 3 + 8)
    await eventually("all connections are closed", lambda: len(postgres.statements()) <= connected)


@pytest.mark.parametrize(
    ("timeout", "function", "status", "code"),
    [
        (0.2, None, 504, "query_timeout"),
        (60.0, "pg_cancel_backend", 503, "query_cancelled"),
        (60.0, "pg_terminate_backend", 503, "database_unavailable"),
    ],
)
async def test_a_query_that_ends_before_the_first_byte_gives_a_status(
    settings: Settings, postgres: Postgres, timeout: float, function: str | None, status: int, code: str
) -> None:
    postgres.run(f"CREATE VIEW sleepy AS {SLEEP}::text AS x")
    ended = False

    def end_them() -> bool:
        # An export whose connection was lost is retried, and must be ended again.
        for pid in sleeping_backends(postgres):
            postgres.run(f"SELECT {function}(%s)", (pid,))
        return ended

    async with served(settings, statement_timeout=timeout) as client:
        ending = asyncio.create_task(eventually("the answer", end_them)) if function else None
        response = await client.get("/export/sleepy.csv")
        ended = True
        if ending is not None:
            await ending
        assert response.status == status
        assert (await response.json())["code"] == code


# --- connections that die in the pool ---------------------------------------------------------------------------


def warm_up(server: LiveServer, postgres: Postgres, connections: int) -> None:
    """Make the server open this many connections to PostgreSQL and leave them idle."""
    postgres.run("CREATE OR REPLACE VIEW a_moment AS SELECT pg_sleep(0.2)::text AS x")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(server.connect())) for _ in range(connections)]
        for client in clients:
            client.send("/export/a_moment.csv")
        assert [client.read().status for client in clients] == [200] * connections
        wait_until("all are idle", lambda: all(state == "idle" for state, _ in postgres.statements()))


def end_idle(postgres: Postgres) -> int:
    """Terminate the backends of Sluice; return how many there were."""
    return len(
        postgres.run("SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = 'sluice'")
    )


def test_connections_killed_in_the_pool_are_replaced(start_live: Callable[..., LiveServer], postgres: Postgres) -> None:
    server = start_live(MAX_CONCURRENT_EXPORTS="6")
    for _ in range(2):
        warm_up(server, postgres, 6)
        assert end_idle(postgres) >= 6
        answers = [ask(server, path) for path in ("/export/users.csv", "/health/ready", "/")]
        assert [answer.status for answer in answers] == [200] * 3
        assert answers[0].body == postgres.copy("SELECT * FROM users")


@pytest.mark.slow
def test_connections_killed_in_the_pool_cost_no_cpu(start_live: Callable[..., LiveServer], postgres: Postgres) -> None:
    server = start_live(MAX_CONCURRENT_EXPORTS="6")
    warm_up(server, postgres, 6)
    (worker,) = server.workers()
    assert end_idle(postgres) >= 6
    before = worker.cpu_times()
    time.sleep(1)  # the second over which it is measured
    after = worker.cpu_times()
    assert (after.user + after.system) - (before.user + before.system) < 0.3
    assert ask(server, "/export/users.csv").status == 200


# --- no free slot, no database ----------------------------------------------------------------------------------


async def test_with_all_export_slots_in_use_a_session_is_refused_and_the_catalogue_works(settings: Settings) -> None:
    async with open_database(replace(settings, max_concurrent_exports=2)) as database:
        async with database.session(), database.session():
            with pytest.raises(errors.ServerBusy):
                await run(database, "SELECT 1")
            await database.ping()
            assert "users" in [relation.name for relation in await database.relations()]
        assert await run(database, "SELECT 1 AS one") == [{"one": 1}]


async def test_relations_are_listed_with_and_without_their_columns(settings: Settings) -> None:
    async with open_database(settings) as database:
        whole = await database.relations()
        without = await database.relations(columns=False)
    assert all(relation.columns for relation in whole if relation.name == "users")
    assert without == [replace(relation, columns=()) for relation in whole]


@pytest.mark.parametrize("file", ["users.csv", "users.csv.gz", "users.csv?limit=0"])
async def test_a_client_that_has_a_whole_file_can_get_the_next_one_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    end, connect = Session.end, Connections._connect
    made = []

    async def end_slowly(session: Session) -> bool:
        await asyncio.sleep(0.2)
        return await end(session)

    async def counted(connections: Connections) -> Connection:
        made.append(await connect(connections))
        return made[-1]

    monkeypatch.setattr(Session, "end", end_slowly)
    monkeypatch.setattr(Connections, "_connect", counted)
    async with served(settings, parallel_readers=1) as client:
        made.clear()  # the health check has a connection of its own
        for _ in range(3):
            # As curl does: a new connection each time, closed as soon as everything has arrived.
            async with client.get(f"/export/{file}", headers={"Connection": "close"}) as response:
                assert response.status == 200, await response.read()
                await response.read()
        assert len(made) == 1  # a role may be limited to one


@pytest.fixture
def closed_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port on which something listens but never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@contextlib.asynccontextmanager
async def responsive_event_loop() -> AsyncIterator[None]:
    """Fail if something in the block blocks the event loop for half a second."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    ticking = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticking.cancel()
    assert longest < 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "127.0.0.1", "port": "{closed_port}"},
        {"host": "localhost", "port": "{closed_port}"},
        {"host": "sluice.invalid"},
        {"host": "/nowhere"},
        {"dbname": "no_such_database"},
        {"user": "no_such_role"},
        {"host": "127.0.0.1", "port": "{silent_port}"},
    ],
    ids=["closed port", "closed port by name", "unknown host", "no socket", "no database", "no role", "silence"],
)
async def test_a_database_that_is_away_is_unavailable_within_seconds(
    settings: Settings,
    closed_port: int,
    silent_port: int,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
) -> None:
    monkeypatch.setattr("server.postgres.connections.CONNECT_TIMEOUT", 0.3)
    values = {name: value.format(closed_port=closed_port, silent_port=silent_port) for name, value in changes.items()}
    dsn = psycopg2.extensions.make_dsn(settings.dsn, password="geheim", **values)
    async with open_database(replace(settings, database_url=dsn)) as database, responsive_event_loop():
        for _ in range(2):
            with pytest.raises(errors.DatabaseUnavailable) as caught:
                await run(database, "SELECT 1")
            assert caught.value.detail == "The database cannot be reached."
            with pytest.raises(errors.DatabaseUnavailable):
                await database.ping()


# --- errors -----------------------------------------------------------------------------------------------------


async def test_a_connection_that_the_server_ends_is_lost_now_and_later(database: Database) -> None:
    async with database.session() as session:
        with pytest.raises(errors.ConnectionLost):
            await session.query("SELECT pg_terminate_backend(pg_backend_pid())")
        with pytest.raises(errors.ConnectionLost):
            await session.query("SELECT 1")
    assert type(error_for(None, "")) is errors.ConnectionLost


def parameters(count: int) -> str:
    return ", ".join(f"${number}" for number in range(1, count + 1))


async def test_more_values_than_the_protocol_can_count_are_too_complex(database: Database) -> None:
    most = 65_535
    async with database.session() as session:
        assert await session.query(f"SELECT 1 IN ({parameters(most)}) AS found", [1] * most) == [{"found": True}]
        with pytest.raises(errors.InvalidRequest) as caught:
            await session.query(f"SELECT 1 IN ({parameters(most + 1)})", [1] * (most + 1))
        with session.rows(encoders(native=True).reader(Dialect(), "csv")) as rows, pytest.raises(errors.InvalidRequest):
            rows.start(Select("SELECT 1", [1] * (most + 1)))
        # Nothing was sent: the session goes on.
        assert await session.query("SELECT 1 AS one") == [{"one": 1}]
    assert (caught.value.status, caught.value.code) == (400, "too_complex")


FAILING_VIEWS = {
    "division": "SELECT 1 / (n - 1) AS hidden_column FROM generate_series(1, 1) AS n",
    "cast": "SELECT ('x' || n)::int AS hidden_column FROM generate_series(1, 1) AS n",
    "regular expression": "SELECT 'a' ~ repeat('(', n) AS hidden_column FROM generate_series(1, 1) AS n",
    "internal": "SELECT pg_read_file('/nowhere' || n) AS hidden_column FROM generate_series(1, 1) AS n",
    "subquery": "SELECT (SELECT x FROM generate_series(0, n) AS x) AS hidden_column FROM generate_series(1, 1) AS n",
}


@pytest.mark.parametrize("view", FAILING_VIEWS.values(), ids=FAILING_VIEWS)
async def test_an_error_body_holds_no_statement(client: TestClient[Any, Any], postgres: Postgres, view: str) -> None:
    postgres.run(f"CREATE VIEW failing AS {view}")
    response = await client.get("/export/failing.csv")
    body = await response.text()
    assert response.status >= 400
    assert response.content_type == "application/problem+json"
    for word in ("SELECT", "FETCH", "DECLARE", "CURSOR", "hidden_column", "generate_series", "nowhere", "LINE 1"):
        assert word not in body


# --- what a session reads ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [True, False])
async def test_a_session_sees_one_snapshot(database: Database, postgres: Postgres, native: bool) -> None:
    postgres.run("CREATE TABLE growing AS SELECT n FROM generate_series(1, 100) AS n")
    async with database.session() as session:
        await session.open()
        with session.rows(encoders(native=native).reader(Dialect(), "csv")) as rows:
            rows.start(Select("SELECT n FROM growing"))
            data = await read_all(rows)
            postgres.run("INSERT INTO growing SELECT n FROM generate_series(101, 200) AS n")
            postgres.run("DELETE FROM growing WHERE n BETWEEN 50 AND 60")
            # Another statement: a portal alone would keep the rows that it was opened on.
            rows.start(Select("SELECT n FROM growing", batches=1))
            again = await read_all(rows)
    assert data == again == b"".join(b"%d\n" % n for n in range(1, 101))


async def read_all(rows: Rows) -> bytes:
    """Return the lines of what is pending."""
    data = b""
    while rows.pending:
        data += (await rows.read(1 << 16)).data
    return data


@pytest.mark.parametrize("native", [True, False])
async def test_a_chunk_stays_valid_while_the_next_one_arrives(
    database: Database, postgres: Postgres, native: bool
) -> None:
    query = "SELECT n, repeat(chr(97 + n % 26), 50) AS text FROM generate_series(1, 300) AS n"
    chunks = []
    async with database.session() as session:
        await session.open()
        with session.rows(encoders(native=native).reader(Dialect(), "csv")) as rows:
            rows.start(Select(query))
            while rows.pending:
                chunks.append((await rows.read(5000)).data)
    assert len(chunks) > 3
    assert b"n,text\n" + b"".join(chunks) == postgres.copy(query)


@pytest.mark.parametrize("native", [True, False])
async def test_values_arrive_as_the_text_that_the_server_sent(database: Database, native: bool) -> None:
    query = (
        "SELECT 1.50::numeric, '{1,NULL}'::int[], '2024-02-29'::date, true, '{\"a\": 1}'::jsonb, NULL::int, ''::text"
    )
    async with database.session() as session:
        await session.open()
        with session.rows(encoders(native=native).reader(Dialect(), "csv")) as rows:
            rows.start(Select(query))
            assert await read_all(rows) == b'1.50,"{1,NULL}",2024-02-29,t,"{""a"": 1}",,""\n'


async def test_a_transaction_may_only_read(database: Database) -> None:
    with pytest.raises(errors.QueryFailed) as caught:
        await run(database, "CREATE TABLE written (x int)")
    assert caught.value.sqlstate == "25006"


# --- the catalogue as it is now ---------------------------------------------------------------------------------


def test_ddl_is_seen_without_a_restart(live: LiveServer, postgres: Postgres) -> None:
    with Client(live.connect()) as client:
        assert client.ask("/export/fresh.csv").status == 404
        postgres.run("CREATE TABLE fresh AS SELECT 1 AS a")
        assert client.ask("/export/fresh.csv").body == b"a\n1\n"
        postgres.run("ALTER TABLE fresh ADD COLUMN b int DEFAULT 2")
        assert client.ask("/export/fresh.csv").body == b"a,b\n1,2\n"
        postgres.run("ALTER TABLE fresh RENAME COLUMN a TO z")
        assert client.ask("/export/fresh.csv").body == b"z,b\n1,2\n"
        postgres.run("ALTER TABLE fresh DROP COLUMN z")
        assert client.ask("/export/fresh.csv").body == b"b\n2\n"
        postgres.run("ALTER TABLE fresh ALTER COLUMN b TYPE text USING 'now text, with a comma'")
        assert client.ask("/export/fresh.csv").body == b'b\n"now text, with a comma"\n'
        postgres.run("DROP TABLE fresh; CREATE VIEW fresh AS SELECT 'a view' AS kind")
        assert client.ask("/export/fresh.csv").body == b"kind\na view\n"
        postgres.run("ALTER VIEW fresh RENAME TO renamed")
        assert client.ask("/export/fresh.csv").status == 404
        assert client.ask("/export/renamed.csv").status == 200


# --- privileges -------------------------------------------------------------------------------------------------


@pytest.fixture
def reader(settings: Settings, postgres: Postgres) -> Iterator[Settings]:
    """Return settings with which Sluice connects as the role `reader`, which has no privileges yet."""
    postgres.run("CREATE ROLE reader LOGIN PASSWORD 'reader'; CREATE SCHEMA second; CREATE SCHEMA closed")
    try:
        dsn = psycopg2.extensions.make_dsn(settings.dsn, user="reader", password="reader")
        yield replace(settings, database_url=dsn, export_schemas=("public", "second", "closed"))
    finally:
        postgres.run("DROP SCHEMA second, closed CASCADE; DROP OWNED BY reader; DROP ROLE reader")


async def get(settings: Settings, path: str) -> tuple[int, bytes]:
    async with served(settings) as client:
        response = await client.get(path)
        return response.status, await response.read()


async def get_problem(settings: Settings, path: str) -> dict[str, Any]:
    async with served(settings) as client:
        response = await client.get(path)
        assert response.content_type == "application/problem+json"
        problem: dict[str, Any] = await response.json()
        return problem


async def test_a_relation_without_select_is_not_found(reader: Settings, postgres: Postgres) -> None:
    problem = await get_problem(reader, "/export/users.csv")
    assert (problem["status"], problem["code"]) == (404, "relation_not_found")
    postgres.run("GRANT SELECT ON users TO reader")
    assert await get(reader, "/export/users.csv") == (200, postgres.copy("SELECT * FROM users"))
    postgres.run("REVOKE SELECT ON users FROM reader")
    assert (await get_problem(reader, "/export/users.csv"))["status"] == 404


async def test_columns_that_may_not_be_read_are_named_if_the_request_names_them(
    reader: Settings, postgres: Postgres
) -> None:
    postgres.run("CREATE TABLE partly AS SELECT 1 AS open, 2 AS secret, 3 AS also_open, 4 AS hidden")
    postgres.run("GRANT SELECT (open, also_open) ON partly TO reader")
    problem = await get_problem(reader, "/export/partly.csv")
    assert (problem["status"], problem["code"]) == (403, "columns_not_readable")
    assert problem["detail"] == "The database role may not read all columns of the relation."
    assert "select=open,also_open" in problem["hint"]
    assert await get(reader, "/export/partly.csv?select=also_open,open") == (200, b"also_open,open\n3,1\n")
    problem = await get_problem(reader, "/export/partly.csv?select=open,secret")
    assert problem["status"] == 403
    assert '"secret"' in problem["detail"]
    assert "hidden" not in problem["detail"]
    assert "open" not in problem["detail"]


async def test_a_schema_without_usage_is_not_found(reader: Settings, postgres: Postgres) -> None:
    postgres.run("CREATE TABLE closed.inside AS SELECT 1 AS one; GRANT SELECT ON closed.inside TO reader")
    for path in ("/export/closed.inside.csv", "/export/inside.csv"):
        assert (await get_problem(reader, path))["code"] == "relation_not_found"
    postgres.run("GRANT USAGE ON SCHEMA closed TO reader")
    assert await get(reader, "/export/closed.inside.csv") == (200, b"one\n1\n")


async def test_the_order_of_the_schemas_decides_between_equal_names(reader: Settings, postgres: Postgres) -> None:
    postgres.run(
        "CREATE TABLE public.twin AS SELECT 'public' AS place; CREATE TABLE second.twin AS SELECT 'second' AS place"
    )
    postgres.run("CREATE TABLE second.single AS SELECT 'only here' AS place; GRANT USAGE ON SCHEMA second TO reader")
    postgres.run("GRANT SELECT ON public.twin, second.twin, second.single TO reader")
    reversed_schemas = replace(reader, export_schemas=("second", "public"))
    assert await get(reader, "/export/twin.csv") == (200, b"place\npublic\n")
    assert await get(reversed_schemas, "/export/twin.csv") == (200, b"place\nsecond\n")
    for settings in (reader, reversed_schemas):
        assert await get(settings, "/export/public.twin.csv") == (200, b"place\npublic\n")
        assert await get(settings, "/export/second.twin.csv") == (200, b"place\nsecond\n")
        assert await get(settings, "/export/single.csv") == (200, b"place\nonly here\n")
    # Readable, but not among the exported schemas.
    only_public = replace(reader, export_schemas=("public",))
    for path in ("/export/second.twin.csv", "/export/single.csv", "/export/second.single.csv"):
        assert (await get_problem(only_public, path))["status"] == 404


async def test_row_level_security_is_honoured(reader: Settings, postgres: Postgres) -> None:
    postgres.run(
        "CREATE TABLE guarded AS SELECT n, CASE n % 2 WHEN 0 THEN 'reader' ELSE 'other' END AS owner "
        "FROM generate_series(1, 6) AS n"
    )
    postgres.run("ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; GRANT SELECT ON guarded TO reader")
    assert await get(reader, "/export/guarded.csv") == (200, b"n,owner\n")
    postgres.run("CREATE POLICY own_rows ON guarded FOR SELECT USING (owner = current_user)")
    assert await get(reader, "/export/guarded.csv") == (200, b"n,owner\n2,reader\n4,reader\n6,reader\n")


async def test_a_view_that_needs_a_privilege_the_role_lacks_is_forbidden(reader: Settings, postgres: Postgres) -> None:
    postgres.run(
        "CREATE VIEW invoker WITH (security_invoker) AS SELECT * FROM users; GRANT SELECT ON invoker TO reader"
    )
    problem = await get_problem(reader, "/export/invoker.csv")
    assert (problem["status"], problem["code"]) == (403, "forbidden")
    assert "users" not in problem["detail"]
    postgres.run("CREATE VIEW definer AS SELECT * FROM users; GRANT SELECT ON definer TO reader")
    assert (await get(reader, "/export/definer.csv"))[0] == 200


async def test_the_page_lists_only_relations_that_the_role_may_read(reader: Settings, postgres: Postgres) -> None:
    postgres.run("GRANT SELECT ON users TO reader")
    status, page = await get(reader, "/")
    assert status == 200
    assert b"table/users>" in page
    assert b"revenue_by_country" not in page


@pytest.mark.parametrize(
    "setting",
    [
        "DateStyle = 'German, DMY'",
        "IntervalStyle = 'sql_standard'",
        "bytea_output = 'escape'",
        "extra_float_digits = -10",
        "client_encoding = 'LATIN1'",
        "statement_timeout = '1min'",
        "lock_timeout = '1s'",
        "transaction_timeout = '1s'",
        "default_transaction_isolation = 'serializable'",
        "search_path = second",
        "standard_conforming_strings = off",
    ],
)
async def test_the_bytes_do_not_depend_on_the_settings_of_the_role(
    reader: Settings, postgres: Postgres, setting: str
) -> None:
    query = (
        "SELECT n, '2024-02-03'::date + n AS day, '1 year 2 days 03:04:05'::interval * n AS span, "
        r"'\x00ff41'::bytea AS bytes, 0.1::float8 + n / 3.0::float8 AS number, 'é表🚀\' || n AS text "
        "FROM generate_series(1, 50) AS n"
    )
    postgres.run(f"CREATE TABLE settled AS {query}; GRANT SELECT ON settled TO reader; ALTER ROLE reader SET {setting}")
    assert await get(reader, "/export/settled.csv") == (200, postgres.copy("SELECT * FROM settled"))
