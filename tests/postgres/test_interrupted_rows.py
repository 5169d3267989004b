"""Reading rows that ends before the last one: cancelled, stopped, timed out, in every phase of a statement.

By both encoders, from a real PostgreSQL, and some tests again on uvloop. No statement may go on in the server, and no
connection may be used again that still holds a part of an answer.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import gc
import os
import select
import socket
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from server import errors
from server.postgres.database import Database
from server.postgres.rows import Select
from server.postgres.session import Session
from server.settings import Settings
from tests.support.engines import open_database
from tests.support.fake_backend import READY
from tests.support.live_server import eventually
from tests.support.postgres import Postgres
from tests.support.rows import (
    ENDLESS,
    MOST,
    SLEEP,
    SUSPENDING,
    Scenario,
    assert_usable,
    backend,
    counting,
    encoder,
    idle_or_gone,
    numbers,
    open_descriptors,
    opened,
    read_all,
    read_on,
    run_on_uvloop,
)
from tests.support.waiting import at_work, sleeping_backends


@pytest.fixture(params=[True, False], ids=["native", "pure"])
def native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# --- Cancellation and stopping, in every phase. ---


@dataclass(frozen=True)
class Phase:
    """A moment in the life of a statement.

    select: the statement. state: what `backend` returns then, a part of it that is "" being anything. pauses: whether
    the task has stopped reading by then; else it reads on.
    """

    select: Select
    state: tuple[str, str]
    pauses: bool = False


PHASES = {
    "waiting for a lock": Phase(Select("SELECT n FROM locked"), ("active", "relation")),
    "planning": Phase(Select("SELECT n FROM small WHERE n = slow_constant()"), ("active", "PgSleep")),
    "before the first row": Phase(SLEEP, ("active", "PgSleep")),
    "before the first row of a batch": Phase(replace(SLEEP, batches=2), ("active", "PgSleep")),
    "after many rows": Phase(
        Select("SELECT n, CASE n WHEN 30000 THEN pg_sleep(3600)::text END FROM generate_series(1, 40000) AS n", (), 2),
        ("active", "PgSleep"),
    ),
    "while rows flow": Phase(ENDLESS, ("active", "")),
    "while batches flow": Phase(replace(ENDLESS, batches=2), ("active", "")),
    "while the reader pauses": Phase(ENDLESS, ("active", "ClientWrite"), pauses=True),
    "between two batches": Phase(SUSPENDING, ("idle in transaction", "ClientRead"), pauses=True),
}


@pytest.fixture
def locked(postgres: Postgres) -> Iterator[None]:
    """Create what the statements of PHASES use: a table that is locked, and a function that takes long to plan."""
    postgres.run(
        "CREATE TABLE locked (n int); CREATE TABLE small (n int);"
        "CREATE FUNCTION slow_constant() RETURNS int IMMUTABLE LANGUAGE plpgsql AS "
        "'BEGIN PERFORM pg_sleep(3600); RETURN 1; END'"
    )
    locking = postgres.connect()
    locking.cursor().execute("BEGIN; LOCK TABLE locked")
    yield
    locking.close()
    postgres.run("DROP FUNCTION slow_constant()")


@pytest.mark.parametrize("phase", PHASES)
async def test_a_task_cancelled_in_any_phase_ends_its_thread_and_its_statement(
    database: Database, postgres: Postgres, locked: None, native: bool, phase: str
) -> None:
    select, state, pauses = PHASES[phase].select, PHASES[phase].state, PHASES[phase].pauses
    sessions: list[Session] = []

    async def work() -> None:
        async with opened(database) as session:
            with session.rows(encoder(native)) as rows:
                rows.start(select)
                if pauses:
                    await rows.read(1)
                sessions.append(session)
                if pauses:
                    await asyncio.Event().wait()
                await read_on(rows, 1000)

    def reached() -> bool:
        found = backend(postgres, sessions[0]) if sessions else ("", "")
        return all(wanted in ("", part) for wanted, part in zip(state, found, strict=True))

    task = asyncio.create_task(work())
    await eventually(phase, reached)
    task.cancel()
    async with asyncio.timeout(30):  # the thread would wait for an hour
        with pytest.raises(asyncio.CancelledError):
            await task
    assert sessions[0].connection.closed
    await eventually("the statement is cancelled", idle_or_gone(postgres, sessions[0]))
    # The thread and the export slot are free again.
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            assert await read_all(rows, "SELECT 1") == b"1\n"


@pytest.mark.parametrize("phase", ["before the first row", "while rows flow", "while batches flow", "after many rows"])
async def test_reading_can_be_stopped_in_any_phase(
    database: Database, postgres: Postgres, native: bool, phase: str
) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            rows.start(PHASES[phase].select)
            reading = asyncio.create_task(read_on(rows, 1000))
            wait_event = PHASES[phase].state[1]
            await eventually(phase, lambda: wait_event in ("", backend(postgres, session)[1]))
            rows.stop()
            async with asyncio.timeout(30):
                with pytest.raises(errors.QueryCancelled, match="shutting down"):
                    await reading
            for _ in range(2):
                with pytest.raises(errors.QueryCancelled, match="shutting down"):
                    await rows.read(1)
            assert rows.pending == 1
            assert session.statement_left_running
    assert session.connection.closed
    await eventually("the statement is cancelled", idle_or_gone(postgres, session))


async def test_reading_can_be_stopped_while_it_waits_for_the_first_bytes(database: Database, native: bool) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            rows.start(SLEEP)
            reading = asyncio.create_task(rows.read(1))
            await asyncio.sleep(0)  # it has sent the statement, and no thread reads yet
            rows.stop()
            async with asyncio.timeout(30):
                with pytest.raises(errors.QueryCancelled, match="shutting down"):
                    await reading


async def test_reading_that_is_stopped_before_or_after_a_statement(database: Database, native: bool) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            assert await read_all(rows, counting(3)) == numbers(3)
            rows.stop()
            assert rows.clean
            rows.start(counting(3))
            with pytest.raises(errors.QueryCancelled):
                await rows.read(1)
            assert not rows.clean
    assert session.connection.closed


async def test_a_task_cancelled_at_any_moment_leaves_nothing_behind(
    settings: Settings, postgres: Postgres, native: bool
) -> None:
    async with open_database(replace(settings, max_concurrent_exports=1, parallel_readers=1)) as database:

        async def work() -> None:
            async with opened(database) as session:
                with session.rows(encoder(native)) as rows:
                    while True:
                        for batches in (0, 1):
                            await read_all(rows, counting(2000, batches), most=1000)

        async def whole() -> None:
            async with opened(database) as session:
                with session.rows(encoder(native)) as rows:
                    assert await read_all(rows, counting(1000)) == numbers(1000)
                await assert_usable(session)

        await whole()
        for attempt in range(60):
            task = asyncio.create_task(work())
            await asyncio.sleep(attempt / 3000)  # not a wait: each task is cancelled at another point
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await whole()
        await eventually("nothing is running", lambda: not at_work(postgres))
    gc.collect()


async def test_many_tasks_cancelled_at_once_leave_no_descriptors_open(
    settings: Settings, postgres: Postgres, native: bool
) -> None:
    async def work(database: Database) -> None:
        async with opened(database) as session:
            with session.rows(encoder(native)) as rows:
                rows.start(SLEEP)
                await rows.read(1)

    async def round_of_six(database: Database) -> None:
        tasks = [asyncio.create_task(work(database)) for _ in range(6)]
        await eventually("six sleep", lambda: len(sleeping_backends(postgres)) == 6)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await eventually("none sleeps", lambda: not at_work(postgres))

    before = []
    connected = len(postgres.statements())  # connections of a server that other tests share
    async with open_database(settings) as database:
        for _ in range(4):
            await round_of_six(database)
            await asyncio.gather(*database._background)
            before.append(open_descriptors())
        assert max(before[1:]) <= before[0] + 4  # connections that are kept for cancelling
    await eventually("all are closed", lambda: len(postgres.statements()) <= connected)


# --- Time-outs. ---


async def test_a_statement_that_returns_no_row_in_time_is_a_query_timeout(
    settings: Settings, postgres: Postgres, native: bool
) -> None:
    async with open_database(replace(settings, statement_timeout=0.2)) as database:
        sessions: list[Session] = []

        async def work() -> None:
            async with database.session() as session:
                await session.explain("SELECT 1")  # switches the server's own timeouts off
                sessions.append(session)
                with session.rows(encoder(native)) as rows:
                    rows.start(SLEEP)
                    await rows.read(1)

        with pytest.raises(errors.QueryTimeout):
            await work()
        assert sessions[0].connection.closed
        await eventually("the statement is cancelled", idle_or_gone(postgres, sessions[0]))


async def test_a_consumer_that_pauses_causes_no_timeout(settings: Settings, postgres: Postgres, native: bool) -> None:
    async with open_database(replace(settings, statement_timeout=0.3)) as database, database.session() as session:
        await session.explain("SELECT 1")
        with session.rows(encoder(native)) as rows:
            rows.start(Select("SELECT n, repeat('x', 1000) FROM generate_series(1, 5000) AS n"))
            received = (await rows.read(1)).rows
            await eventually("PostgreSQL waits", lambda: backend(postgres, session)[1] == "ClientWrite")
            await asyncio.sleep(1)  # longer than STATEMENT_TIMEOUT, which limits PostgreSQL only
            assert backend(postgres, session)[0] == "active"
            while rows.pending:
                received += (await rows.read(MOST)).rows
        assert received == 5000


async def test_the_timeout_starts_again_with_every_row(settings: Settings, native: bool) -> None:
    # Each row fills PostgreSQL's send buffer (8 kB), so it is sent at once, and arrives well within the timeout. All
    # rows together take longer.
    async with open_database(replace(settings, statement_timeout=1)) as database, database.session() as session:
        await session.explain("SELECT 1")
        with session.rows(encoder(native)) as rows:
            started = time.monotonic()
            sql = "SELECT n, repeat('x', 9000), pg_sleep(0.05)::text FROM generate_series(1, 30) AS n"
            data = await read_all(rows, sql)
            assert data.count(b"\n") == 30
            assert time.monotonic() - started > 1  # 30 x 0.05 s on any machine


async def test_rows_that_arrive_slowly_are_returned_as_they_arrive(database: Database, native: bool) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            rows.start(
                Select(
                    "SELECT n, repeat('x', 9000), CASE n WHEN 5 THEN pg_sleep(3600)::text END "
                    "FROM generate_series(1, 9) AS n"
                )
            )
            received = 0
            async with asyncio.timeout(30):
                while received < 3:  # the fourth may not all have been sent
                    received += (await rows.read(1 << 30)).rows
            assert rows.pending == 1


# --- A read that ends within a row. ---


class HeldConnection:
    """A connection whose server is heard only as far as the test wants. Everything passes through a socket pair."""

    def __init__(self, session: Session) -> None:
        self._wire = session.connection.wire
        self._server = self._wire.descriptor
        self._ours, self._readers = socket.socketpair()
        self._readers.setblocking(False)
        self._wire.descriptor = self._readers.fileno()
        self._kept = b""

    def close(self) -> None:
        """Connect the reader and the server again. They must have received everything."""
        self._wire.descriptor = self._server
        self._ours.close()
        self._readers.close()

    def pass_on(self, last: bytes) -> None:
        """Pass on what the reader sends, and what the server sends up to the bytes `last`, and no more."""
        received = self._kept
        while last not in received:
            ready, _, _ = select.select([self._server, self._ours.fileno()], [], [])
            if self._ours.fileno() in ready:
                sent = self._ours.recv(65536)
                assert os.write(self._server, sent) == len(sent)
            if self._server in ready:
                received += os.read(self._server, 65536)
        end = received.index(last) + len(last)
        self._kept = received[end:]
        self._ours.sendall(received[:end])

    def all_taken(self) -> bool:
        """Return whether the reader has received everything that was passed on."""
        left = array.array("i", [0])
        fcntl.ioctl(self._readers, termios.FIONREAD, left)
        return left[0] == 0


@dataclass(frozen=True)
class Cut:
    """A row that is cut into two. last: the last bytes that come at first. lines: of the whole row."""

    sql: str
    last: bytes
    lines: bytes


CUTS = {
    "a value": Cut("SELECT 'first', repeat('x', 20000)", b"x" * 10_000, b"first," + b"x" * 20_000 + b"\n"),
    "a large value": Cut("SELECT 'first', repeat('\"', 200000)", b'"' * 150_000, b'first,"' + b'"' * 400_000 + b'"\n'),
    "a value beside a large one": Cut(
        "SELECT repeat('x', 100000), repeat('y', 50000)",
        b"y" * 10_000,
        b"x" * 100_000 + b"," + b"y" * 50_000 + b"\n",
    ),
    # A length of 100,000 is the bytes 0, 1, 134 and 160.
    "the length of a large value": Cut(
        "SELECT repeat('x', 100000), repeat('y', 100000)",
        b"x" * 100_000 + b"\0\1",
        b"x" * 100_000 + b"," + b"y" * 100_000 + b"\n",
    ),
}


@pytest.mark.parametrize("ending", ["timeout", "stop", "cancellation"])
@pytest.mark.parametrize("name", CUTS)
async def test_a_read_that_ends_within_a_row_loses_the_connection(
    settings: Settings, postgres: Postgres, native: bool, name: str, ending: str
) -> None:
    limit = 1 if ending == "timeout" else 30
    async with open_database(replace(settings, statement_timeout=limit)) as database:
        async with database.session() as session:
            await session.explain("SELECT 1")
            with contextlib.closing(HeldConnection(session)) as held, session.rows(encoder(native)) as rows:
                rows.start(Select(CUTS[name].sql))
                reading = asyncio.create_task(read_on(rows))
                await asyncio.to_thread(held.pass_on, CUTS[name].last)
                await eventually("the reader has it", held.all_taken)
                if ending == "stop":
                    rows.stop()
                elif ending == "cancellation":
                    reading.cancel()
                raised = {"timeout": errors.QueryTimeout, "stop": errors.QueryCancelled}
                async with asyncio.timeout(30):
                    with pytest.raises(raised.get(ending, asyncio.CancelledError)):
                        await reading
                assert (rows.pending, rows.clean) == (1, False)
        # The connection holds the rest of the row, so nothing uses it again.
        assert session.connection.closed
        await eventually("the statement has ended", idle_or_gone(postgres, session))
        async with opened(database) as another:
            assert another.backend_pid != session.backend_pid
            await assert_usable(another)


@pytest.mark.parametrize("name", CUTS)
async def test_a_row_is_whole_or_lost_if_reading_goes_on_after_a_timeout(
    settings: Settings, native: bool, name: str
) -> None:
    cut = CUTS[name]
    received = b""
    async with open_database(replace(settings, statement_timeout=1)) as database, database.session() as session:
        await session.explain("SELECT 1")
        with contextlib.closing(HeldConnection(session)) as held, session.rows(encoder(native)) as rows:

            async def read() -> None:
                nonlocal received
                while rows.pending:
                    received += (await rows.read(MOST)).data

            rows.start(Select(cut.sql))
            reading = asyncio.create_task(read())
            await asyncio.to_thread(held.pass_on, cut.last)
            with pytest.raises(errors.QueryTimeout):
                await reading
            await asyncio.to_thread(held.pass_on, READY)
            if native and name == "a value beside a large one":  # what it had of the value is gone
                with pytest.raises(errors.ConnectionLost):
                    await read()
                assert not rows.clean
                return
            await read()
            assert received == cut.lines
            assert rows.clean
        await assert_usable(session)


# --- The same on uvloop. ---

SCENARIOS: list[Scenario] = [
    test_reading_can_be_stopped_while_it_waits_for_the_first_bytes,
    test_reading_that_is_stopped_before_or_after_a_statement,
    test_a_task_cancelled_at_any_moment_leaves_nothing_behind,
    test_many_tasks_cancelled_at_once_leave_no_descriptors_open,
    test_a_statement_that_returns_no_row_in_time_is_a_query_timeout,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_same_on_uvloop(settings: Settings, postgres: Postgres, native: bool, scenario: Scenario) -> None:
    run_on_uvloop(scenario, settings, postgres, native)
