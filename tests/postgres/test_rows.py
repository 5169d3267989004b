"""The rows of running SELECTs, read from a connection that is detached from aiopg and reattached: a real PostgreSQL.

On asyncio's own event loop, and most tests again on uvloop, which the server uses: each keeps its own record of the
descriptors that it watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from server import errors
from server.encode.encoders import NativeEncoder, bind_libpq, make_encoder
from server.postgres.database import Database
from server.postgres.libpq import HAS_CHUNKS, LIBPQ
from server.postgres.rows import Rows
from server.postgres.session import Session
from server.query.dialect import Dialect
from server.settings import Settings
from tests.support.engines import open_database
from tests.support.live_server import eventually
from tests.support.postgres import Postgres
from tests.support.waiting import sleeping_backends

MOST = 256 << 10
# More than the sockets and a chunk hold.
ENDLESS = b"SELECT n, repeat('x', 1000) FROM generate_series(1, 1000000) AS n"
SLEEP = b"SELECT pg_sleep(3600)::text"


@pytest.fixture(autouse=True)
def _native_encoder() -> None:
    assert bind_libpq(LIBPQ)
    assert HAS_CHUNKS


def encoder() -> NativeEncoder:
    made = make_encoder(Dialect(), "csv", native=True)
    assert isinstance(made, NativeEncoder)
    return made


async def read_all(rows: Rows, sql: bytes, chunk_rows: int = 200, most: int = MOST) -> bytes:
    """Return the lines of this statement."""
    rows.start(sql, chunk_rows)
    data = b""
    while rows.running:
        data += (await rows.read(most)).data
    return data


def numbers(count: int) -> bytes:
    return b"".join(b"%d\n" % n for n in range(1, count + 1))


def backend(postgres: Postgres, session: Session) -> tuple[str, str]:
    """Return the state of the session's backend and what it waits for; ("gone", "") if it has ended."""
    found = postgres.run(
        "SELECT state, coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = %s", (session.backend_pid,)
    )
    return found[0] if found else ("gone", "")


def idle_or_gone(postgres: Postgres, session: Session) -> Callable[[], bool]:
    return lambda: backend(postgres, session)[0] in ("idle", "gone")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def assert_usable(session: Session) -> None:
    """Check that queries run through aiopg again, with the event loop watching the descriptor."""
    assert not session.connection.detached
    async with asyncio.timeout(30):  # an answer that the event loop does not watch for never arrives
        assert await session.query("SELECT 1 AS one") == [{"one": 1}]
        assert await session.query("SELECT pg_sleep(0.01)::text AS x") == [{"x": ""}]


# --- statements, one after another ------------------------------------------------------------------------------


async def test_statements_follow_one_another_on_one_connection(database: Database) -> None:
    async with database.session() as session:
        with session.rows(encoder()) as rows:
            for count in (0, 1, 199, 200, 201, 50_000, 3):
                assert await read_all(rows, b"SELECT generate_series(1, %d)" % count) == numbers(count)
                assert not rows.running
        await assert_usable(session)


@pytest.mark.parametrize("chunk_rows", [1, 7, 200, 100_000])
@pytest.mark.parametrize("most", [1, 1000, 1 << 30])
async def test_the_lines_do_not_depend_on_the_size_of_chunks_and_reads(
    database: Database, chunk_rows: int, most: int
) -> None:
    async with database.session() as session:
        with session.rows(encoder()) as rows:
            rows.start(b"SELECT generate_series(1, 1000)", chunk_rows)
            chunks = []
            while rows.running:
                chunks.append(await rows.read(most))
    assert b"".join(chunk.data for chunk in chunks) == numbers(1000)
    assert sum(chunk.rows for chunk in chunks) == 1000
    if most == 1:  # each read ends with the first chunk of rows that arrives
        assert all(chunk.rows <= chunk_rows for chunk in chunks)


async def test_a_session_can_be_detached_and_reattached_many_times(database: Database) -> None:
    async with database.session() as session:
        before = open_descriptors()
        for _ in range(20):
            with session.rows(encoder()) as rows:
                assert await read_all(rows, b"SELECT 1") == b"1\n"
            await assert_usable(session)
        assert open_descriptors() == before


async def test_a_connection_that_streamed_serves_the_next_session(database: Database) -> None:
    pids = set()
    for _ in range(5):
        async with database.session() as session:
            pids.add(session.backend_pid)
            with session.rows(encoder()) as rows:
                assert await read_all(rows, b"SELECT generate_series(1, 1000)") == numbers(1000)
    assert len(pids) == 1


async def test_a_block_without_a_statement_leaves_the_connection_as_it_was(database: Database) -> None:
    async with database.session() as session:
        with session.rows(encoder()):
            assert session.connection.detached
        await assert_usable(session)


async def test_a_statement_larger_than_the_socket_takes(settings: Settings, postgres: Postgres) -> None:
    async with open_database(settings) as database, database.session() as session:
        # A small send buffer: the statement is sent in pieces, while the rows are waited for.
        with socket.socket(fileno=os.dup(session.connection.raw.fileno())) as shared:
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        value = os.urandom(64 << 10).hex().encode()
        assert len(value) == 128 << 10
        with session.rows(encoder()) as rows:
            assert await read_all(rows, b"SELECT '%s'::text" % value) == value + b"\n"
            assert await read_all(rows, b"SELECT generate_series(1, 3)") == numbers(3)
        await assert_usable(session)


# --- errors -----------------------------------------------------------------------------------------------------


async def test_an_error_ends_the_statement_and_not_the_connection(database: Database) -> None:
    async with database.session() as session:
        with session.rows(encoder()) as rows:
            rows.start(b"SELECT 1 / (n - 1000) FROM generate_series(1, 2000) AS n", 8)
            received = 0

            async def rest() -> None:
                nonlocal received
                while rows.running:
                    received += (await rows.read(1)).rows

            with pytest.raises(errors.InvalidRequest, match="division by zero") as caught:
                await rest()
            assert caught.value.code == "invalid_value"
            assert 0 < received < 1000
            assert (rows.running, rows.lost) == (False, False)
        # The transaction has failed; the connection has not.
        with pytest.raises(errors.QueryFailed, match="25P02"):
            await session.query("SELECT 1")
        pid = session.backend_pid
    async with database.session() as session:
        assert session.backend_pid == pid
        with session.rows(encoder()) as rows:
            assert await read_all(rows, b"SELECT 1") == b"1\n"


@pytest.mark.parametrize(
    ("sql", "error"),
    [
        (b"SELEC 1", errors.QueryFailed),
        (b"SELECT nothing", errors.RelationGone),
        (b"SELECT * FROM pg_authid_of_nobody", errors.RelationGone),
        (b"SELECT 'x'::int", errors.InvalidRequest),
        (b"SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(60)", errors.QueryCancelled),
        (b"CREATE TABLE written (x int)", errors.QueryFailed),
    ],
)
async def test_a_statement_that_fails_before_its_first_row_raises_its_error(
    database: Database, sql: bytes, error: type[errors.ExportError]
) -> None:
    async with database.session() as session:
        with session.rows(encoder()) as rows:
            rows.start(sql, 200)
            with pytest.raises(error):
                await rows.read(1)
            assert (rows.running, rows.lost) == (False, False)


async def test_a_backend_that_is_terminated_is_a_lost_connection(database: Database, postgres: Postgres) -> None:
    async with database.session() as session:
        with session.rows(encoder()) as rows:
            rows.start(SLEEP, 200)
            reading = asyncio.create_task(rows.read(1))
            await eventually("it sleeps", lambda: backend(postgres, session)[1] == "PgSleep")
            postgres.run("SELECT pg_terminate_backend(%s)", (session.backend_pid,))
            with pytest.raises(errors.ConnectionLost):
                await reading
            assert (rows.running, rows.lost) == (False, True)
        pid = session.backend_pid
    async with database.session() as session:
        assert session.backend_pid != pid
        await assert_usable(session)


async def test_a_backend_terminated_between_two_reads_is_a_lost_connection(
    database: Database, postgres: Postgres
) -> None:
    async with database.session() as session:
        with session.rows(encoder()) as rows:
            rows.start(ENDLESS, 200)
            assert (await rows.read(1)).rows
            await eventually("it waits for us", lambda: backend(postgres, session)[1] == "ClientWrite")
            postgres.run("SELECT pg_terminate_backend(%s, 10000)", (session.backend_pid,))

            async def rest() -> None:
                while rows.running:
                    await rows.read(MOST)

            with pytest.raises(errors.ConnectionLost):
                await rest()
            assert rows.lost


async def test_a_statement_on_a_connection_that_is_gone_is_a_lost_connection(
    database: Database, postgres: Postgres
) -> None:
    async with database.session() as session:
        with session.rows(encoder()) as rows:
            assert await read_all(rows, b"SELECT 1") == b"1\n"
            postgres.run("SELECT pg_terminate_backend(%s, 10000)", (session.backend_pid,))

            async def another() -> None:
                await read_all(rows, b"SELECT 2")

            with pytest.raises(errors.ConnectionLost):
                await another()
            assert (rows.running, rows.lost) == (False, True)


async def test_a_connection_that_was_closed_before_is_a_lost_connection(database: Database) -> None:
    # aiopg may notice that it broke before it is detached.
    async with database.session() as session:
        session.connection.close()
        with pytest.raises(errors.ConnectionLost):
            session.rows(encoder())


# --- cancellation and time-outs ---------------------------------------------------------------------------------


async def test_cancelling_a_task_ends_its_thread_and_its_statement(database: Database, postgres: Postgres) -> None:
    sessions: list[Session] = []

    async def work() -> None:
        async with database.session() as session:
            sessions.append(session)
            with session.rows(encoder()) as rows:
                rows.start(SLEEP, 200)
                await rows.read(1)

    task = asyncio.create_task(work())
    await eventually("it sleeps", lambda: sessions and backend(postgres, sessions[0])[1] == "PgSleep")
    task.cancel()
    async with asyncio.timeout(30):  # the thread would wait for an hour
        with pytest.raises(asyncio.CancelledError):
            await task
    assert task.cancelled()
    assert sessions[0].connection.closed
    await eventually("the statement is cancelled", idle_or_gone(postgres, sessions[0]))
    # The thread and the export slot are free again.
    async with database.session() as session:
        with session.rows(encoder()) as rows:
            assert await read_all(rows, b"SELECT 1") == b"1\n"


async def test_a_task_cancelled_at_any_moment_leaves_nothing_behind(settings: Settings, postgres: Postgres) -> None:
    async with open_database(replace(settings, max_concurrent_exports=1, parallel_readers=1)) as database:

        async def work() -> None:
            async with database.session() as session:
                with session.rows(encoder()) as rows:
                    while True:
                        await read_all(rows, b"SELECT generate_series(1, 2000)", most=1000)

        async def whole() -> None:
            async with database.session() as session:
                with session.rows(encoder()) as rows:
                    assert await read_all(rows, b"SELECT generate_series(1, 1000)") == numbers(1000)
                await assert_usable(session)

        await whole()
        for attempt in range(60):
            task = asyncio.create_task(work())
            await asyncio.sleep(attempt / 3000)  # not a wait: each task is cancelled at another point
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await whole()
        await eventually("nothing is running", lambda: {state for state, _ in postgres.statements()} <= {"idle"})
    gc.collect()


async def test_many_tasks_cancelled_at_once_leave_no_descriptors_open(settings: Settings, postgres: Postgres) -> None:
    async def work(database: Database) -> None:
        async with database.session() as session:
            with session.rows(encoder()) as rows:
                rows.start(SLEEP, 200)
                await rows.read(1)

    async def round_of_six(database: Database) -> None:
        tasks = [asyncio.create_task(work(database)) for _ in range(6)]
        await eventually("six sleep", lambda: len(sleeping_backends(postgres)) == 6)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await eventually("none sleeps", lambda: {state for state, _ in postgres.statements()} <= {"idle"})

    before = []
    connected = len(postgres.statements())  # connections of a server that other tests share
    async with open_database(settings) as database:
        for _ in range(4):
            await round_of_six(database)
            await asyncio.gather(*database._background)
            before.append(open_descriptors())
        assert max(before[1:]) <= before[0] + 4  # connections that are kept for cancelling
    await eventually("all are closed", lambda: len(postgres.statements()) <= connected)


async def test_a_statement_that_returns_no_row_in_time_is_a_query_timeout(
    settings: Settings, postgres: Postgres
) -> None:
    async with open_database(replace(settings, statement_timeout=0.2)) as database:
        sessions: list[Session] = []

        async def work() -> None:
            async with database.session() as session:
                await session.check_snapshot(streaming=True)
                sessions.append(session)
                with session.rows(encoder()) as rows:
                    rows.start(SLEEP, 200)
                    await rows.read(1)

        with pytest.raises(errors.QueryTimeout):
            await work()
        assert sessions[0].connection.closed
        await eventually("the statement is cancelled", idle_or_gone(postgres, sessions[0]))


async def test_a_consumer_that_pauses_causes_no_timeout(settings: Settings, postgres: Postgres) -> None:
    async with open_database(replace(settings, statement_timeout=0.3)) as database, database.session() as session:
        await session.check_snapshot(streaming=True)
        with session.rows(encoder()) as rows:
            rows.start(b"SELECT n, repeat('x', 1000) FROM generate_series(1, 5000) AS n", 200)
            received = (await rows.read(1)).rows
            await eventually("PostgreSQL waits", lambda: backend(postgres, session)[1] == "ClientWrite")
            await asyncio.sleep(1)  # longer than STATEMENT_TIMEOUT, which limits PostgreSQL only
            assert backend(postgres, session)[0] == "active"
            while rows.running:
                received += (await rows.read(MOST)).rows
        assert received == 5000


async def test_the_timeout_starts_again_with_every_row(settings: Settings) -> None:
    # Each row fills PostgreSQL's send buffer (8 kB), so it is sent at once, and arrives well within the timeout. All
    # rows together take longer.
    async with open_database(replace(settings, statement_timeout=1)) as database, database.session() as session:
        await session.check_snapshot(streaming=True)
        with session.rows(encoder()) as rows:
            started = time.monotonic()
            sql = b"SELECT n, repeat('x', 9000), pg_sleep(0.05)::text FROM generate_series(1, 30) AS n"
            data = await read_all(rows, sql, chunk_rows=200)
            assert data.count(b"\n") == 30
            assert time.monotonic() - started > 1  # 30 x 0.05 s on any machine


async def test_rows_that_arrive_slowly_are_returned_as_they_arrive(database: Database, postgres: Postgres) -> None:
    async with database.session() as session:
        with session.rows(encoder()) as rows:
            rows.start(
                b"SELECT n, repeat('x', 9000), CASE n WHEN 5 THEN pg_sleep(3600)::text END "
                b"FROM generate_series(1, 9) AS n",
                1,
            )
            received = 0
            async with asyncio.timeout(30):
                while received < 3:  # the fourth may not all have been sent
                    received += (await rows.read(1 << 30)).rows
            assert rows.running


async def test_the_event_loop_is_responsive_while_rows_are_read(database: Database) -> None:
    iterations = 0

    async def count() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    async with database.session() as session:
        with session.rows(encoder()) as rows:
            counting = asyncio.create_task(count())
            await read_all(rows, b"SELECT pg_sleep(0.2)::text")
            counting.cancel()
    assert iterations > 10


async def test_every_slot_can_stream_at_once(settings: Settings, postgres: Postgres) -> None:
    # Each has a thread of its own: one that waits for rows does not delay the others.
    async with (
        open_database(replace(settings, max_concurrent_exports=5, parallel_readers=1)) as database,
        contextlib.AsyncExitStack() as stack,
    ):
        every: list[tuple[Session, Rows]] = []
        for _ in range(5):
            session = await stack.enter_async_context(database.session())
            every.append((session, stack.enter_context(session.rows(encoder()))))
        waiting = []
        for _, rows in every[:4]:
            rows.start(SLEEP, 200)
            waiting.append(asyncio.create_task(rows.read(1)))
        await eventually("four sleep", lambda: len(sleeping_backends(postgres)) == 4)
        async with asyncio.timeout(30):
            assert await read_all(every[4][1], b"SELECT generate_series(1, 100)") == numbers(100)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


# --- the same on uvloop -----------------------------------------------------------------------------------------

Scenario = Callable[..., Coroutine[object, object, None]]
SCENARIOS: list[Scenario] = [
    test_statements_follow_one_another_on_one_connection,
    test_a_session_can_be_detached_and_reattached_many_times,
    test_a_connection_that_streamed_serves_the_next_session,
    test_a_block_without_a_statement_leaves_the_connection_as_it_was,
    test_a_statement_larger_than_the_socket_takes,
    test_an_error_ends_the_statement_and_not_the_connection,
    test_a_backend_that_is_terminated_is_a_lost_connection,
    test_a_backend_terminated_between_two_reads_is_a_lost_connection,
    test_a_statement_on_a_connection_that_is_gone_is_a_lost_connection,
    test_a_connection_that_was_closed_before_is_a_lost_connection,
    test_cancelling_a_task_ends_its_thread_and_its_statement,
    test_a_task_cancelled_at_any_moment_leaves_nothing_behind,
    test_many_tasks_cancelled_at_once_leave_no_descriptors_open,
    test_a_statement_that_returns_no_row_in_time_is_a_query_timeout,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_same_on_uvloop(settings: Settings, postgres: Postgres, scenario: Scenario) -> None:
    async def run_scenario() -> None:
        async with open_database(settings) as database:
            given = {"database": database, "settings": settings, "postgres": postgres}
            await scenario(**{name: given[name] for name in inspect.signature(scenario).parameters})

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_scenario())
