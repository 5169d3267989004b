"""The scan of one export, in this process: chunks, back-pressure, and what stopping, errors and cancellation leave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest

from server import errors
from server.chunk import Chunk
from server.export.pipeline import OpenExport
from server.export.ranges import RANGE_BUFFER_BYTES
from server.export.scan import FILE_CHUNK_BYTES
from server.export.strategy import FEWEST_BLOCKS
from server.postgres.database import Database
from server.postgres.messages import PORTAL_SUSPENDED, Messages
from server.postgres.reader import BATCH_ROWS
from server.postgres.session import Session
from server.query.catalogue import RelationName
from server.query.plan import make_plan
from server.query.request import ExportRequest
from server.settings import Settings
from tests.support.engines import make_engine, open_database
from tests.support.live_server import eventually
from tests.support.postgres import Postgres
from tests.support.relay import Relay


@contextlib.asynccontextmanager
async def scanning(database: Database, name: str, *, native: bool = True) -> AsyncIterator[tuple[Session, Any]]:
    """A session on the relation and its chunks, not started yet. The chunks are closed at the end."""
    async with database.session() as session:
        plan = make_plan(ExportRequest(RelationName(name), "csv"), await session.relation(RelationName(name)))
        export = OpenExport(make_engine(database, native=native), session, plan)
        async with contextlib.aclosing(export.chunks()) as chunks:
            yield session, chunks


def last_statement(postgres: Postgres, session: Session) -> tuple[str, str, str]:
    """(state, query, what it waits for) of the session's backend."""
    (row,) = postgres.run(
        "SELECT state, query, coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = %s", (session.backend_pid,)
    )
    state, query, waits_for = row
    return state, query, waits_for


# --- how much is held, and how far a reader runs ahead -----------------------------------------------------------

both_encoders = pytest.mark.parametrize("native", [True, False], ids=["native", "pure"])


async def read_all(database: Database, name: str, *, native: bool = True) -> list[Chunk]:
    async with scanning(database, name, native=native) as (_, chunks):
        return [chunk async for chunk in chunks]


@both_encoders
async def test_a_file_is_the_bytes_of_copy_in_chunks(database: Database, postgres: Postgres, native: bool) -> None:
    chunks = await read_all(database, "users", native=native)
    assert b"".join(chunk.data for chunk in chunks) == postgres.copy("SELECT * FROM users")
    assert sum(chunk.rows for chunk in chunks) == postgres.run("SELECT count(*) FROM users")[0][0]
    # The first comes as soon as there is a row. The others are large enough that the cost of a chunk is negligible.
    assert len(chunks[0].data) < FILE_CHUNK_BYTES / 2
    assert max(len(chunk.data) for chunk in chunks) < 2 * FILE_CHUNK_BYTES


# Large values that the catalogue does not show: a chunk must not hold many of them.
SUDDEN = "SELECT n, CASE WHEN n > 3000 THEN {large} END AS large FROM generate_series(1, 3060) AS n"
LARGE_VALUES = {
    "external": ("TABLE", "EXTERNAL", "repeat('x', 1000000)"),
    "compressed": ("TABLE", "EXTENDED", "repeat('x', 1000000)"),
    "hardly compressed": (
        "TABLE",
        "EXTENDED",
        "(SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, 31250) AS m)",
    ),
    "in a view": ("VIEW", "", "repeat('x', 1000000)"),
}
# Those that PostgreSQL needs seconds to make.
SLOWLY_MADE = "hardly compressed"


def make_sudden(postgres: Postgres, kind: str, storage: str, large: str) -> None:
    """The relation `sudden`: thousands of tiny rows, then 60 of a megabyte each."""
    query = SUDDEN.format(large=large)
    if kind == "VIEW":
        postgres.run(f"CREATE VIEW sudden AS {query}")
        return
    postgres.run(f"CREATE TABLE sudden (n int, large text); ALTER TABLE sudden ALTER large SET STORAGE {storage}")
    postgres.run(f"INSERT INTO sudden {query}")


@pytest.mark.parametrize("analyzed", [False, True], ids=["fresh", "analyzed"])
@pytest.mark.parametrize(
    "values", [pytest.param(name, marks=pytest.mark.slow) if name == SLOWLY_MADE else name for name in LARGE_VALUES]
)
@both_encoders
async def test_a_chunk_ends_with_the_value_that_makes_it_large(
    database: Database, postgres: Postgres, values: str, analyzed: bool, native: bool
) -> None:
    make_sudden(postgres, *LARGE_VALUES[values])
    if analyzed and LARGE_VALUES[values][0] == "TABLE":
        postgres.run("ANALYZE sudden")
    chunks = await read_all(database, "sudden", native=native)
    data = b"".join(chunk.data for chunk in chunks)
    assert data == postgres.copy("SELECT * FROM sudden")
    # The reader in Python writes a row of less than a megabyte at once.
    most = 2 * FILE_CHUNK_BYTES if native else FILE_CHUNK_BYTES + 1_000_100
    assert max(len(chunk.data) for chunk in chunks) < most


@both_encoders
async def test_wide_rows_come_one_by_one(database: Database, postgres: Postgres, native: bool) -> None:
    postgres.run("CREATE TABLE wide (n int, large text); ALTER TABLE wide ALTER large SET STORAGE EXTERNAL")
    postgres.run("INSERT INTO wide SELECT n, repeat('x', 4000000) FROM generate_series(1, 12) AS n; ANALYZE wide")
    chunks = await read_all(database, "wide", native=native)
    assert b"".join(chunk.data for chunk in chunks) == postgres.copy("SELECT * FROM wide")
    assert max(chunk.rows for chunk in chunks) == 1


async def test_a_row_of_many_large_values_is_not_held_whole(database: Database, postgres: Postgres) -> None:
    columns = ", ".join(f"repeat('x', 1000000) AS c{number}" for number in range(20))
    postgres.run(f"CREATE VIEW wide AS SELECT {columns}")
    chunks = await read_all(database, "wide")
    assert b"".join(chunk.data for chunk in chunks) == postgres.copy("SELECT * FROM wide")
    assert max(len(chunk.data) for chunk in chunks) < 2 * FILE_CHUNK_BYTES
    assert sum(chunk.rows for chunk in chunks) == 1


async def test_the_portal_is_a_server_side_cursor(database: Database, postgres: Postgres) -> None:
    postgres.run(
        "CREATE VIEW cursors AS SELECT name, statement LIKE 'SELECT source.%' AS ours FROM pg_cursors WHERE name <> ''"
    )
    chunks = await read_all(database, "cursors")
    assert b"".join(chunk.data for chunk in chunks) == b"name,ours\nsluice,t\n"


@both_encoders
async def test_a_heap_scan_is_suspended_after_each_batch(
    database: Database, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    postgres.run(f"CREATE TABLE heap AS SELECT generate_series(1, {3 * BATCH_ROWS + 1}) AS n; ANALYZE heap")
    received = bytearray()
    async with scanning(database, "heap", native=native) as (session, chunks):
        ours, theirs = socket.socketpair()
        relay = Relay(session.connection.wire.descriptor, theirs, received)
        monkeypatch.setattr(session.connection.wire, "descriptor", ours.fileno())
        ours.setblocking(False)
        try:
            body = b"".join([chunk.data async for chunk in chunks])
        finally:
            monkeypatch.undo()
            relay.stop()
            ours.close()
            theirs.close()
    assert body == postgres.copy("SELECT * FROM heap")
    read = Messages()
    read.feed(bytes(received))
    assert [kind for kind, _ in read].count(PORTAL_SUSPENDED) == 3


async def test_the_server_works_on_while_a_chunk_is_handed_out(database: Database, postgres: Postgres) -> None:
    # The rows before the slow one fill more than PostgreSQL keeps back (8 kB) before it sends.
    postgres.run(
        "CREATE VIEW slow AS SELECT n, repeat('x', 3000) AS x, CASE WHEN n = 20 THEN pg_sleep(60)::text END AS y "
        "FROM generate_series(1, 30) AS n"
    )
    async with scanning(database, "slow") as (session, chunks):
        first = await anext(chunks)
        assert 0 < first.rows < 20
        await eventually("the slow row is being made", lambda: last_statement(postgres, session)[2] == "PgSleep")


async def test_a_consumer_that_stops_makes_postgresql_wait(database: Database, postgres: Postgres) -> None:
    # Each row that the server computes takes a lock, which can be counted from outside.
    postgres.run(
        "CREATE VIEW counted AS SELECT n, repeat('x', 100000) AS filler, "
        "pg_try_advisory_xact_lock_shared(4711, n) AS locked FROM generate_series(1, 1000) AS n"
    )

    def rows_computed() -> int:
        return int(postgres.run("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 4711")[0][0])

    async with scanning(database, "counted") as (session, chunks):
        handed_out = (await anext(chunks)).rows
        await eventually("PostgreSQL waits", postgres.streams_at_rest)
        assert last_statement(postgres, session)[0] == "active"
        # What may wait for the consumer, one chunk that the reader holds, and what libpq and the sockets hold.
        ahead = RANGE_BUFFER_BYTES + 2 * FILE_CHUNK_BYTES + (2 << 20)
        assert handed_out < rows_computed() < handed_out + ahead // 100_000
        rest = [chunk.rows async for chunk in chunks]
        assert handed_out + sum(rest) == 1000


# --- stopping in the middle --------------------------------------------------------------------------------------


@pytest.fixture
async def complaints() -> list[dict[str, Any]]:
    """What the event loop complains about: tasks never awaited, exceptions never retrieved."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    return heard


@contextlib.contextmanager
def nothing_left_open() -> Iterator[None]:
    """Assert that every generator that is started in this block is closed in it, and not later by the event loop."""
    left: list[AsyncGenerator[Any, Any]] = []
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(hooks.firstiter, left.append)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*hooks)
    assert left == []


# Rows of 1 kB, so that some of them arrive before the next is made.
STOPS = {
    "in the middle of a table": ("SELECT n, repeat('x', 1000) AS x FROM generate_series(1, 20000) AS n", 2),
    "after the first rows of a slow view": (
        "SELECT n, repeat('x', 1000), CASE WHEN n > 20 THEN pg_sleep(60)::text END y FROM generate_series(1, 30) n",
        1,
    ),
    "with an error further on": (
        "SELECT n, repeat('x', 1000) AS x, 1 / (n - 50) AS y FROM generate_series(1, 100) AS n",
        1,
    ),
    "before the first chunk": ("SELECT n FROM generate_series(1, 10000) AS n", 0),
    "at the end": ("SELECT n FROM generate_series(1, 5) AS n", 1),
}


@both_encoders
@pytest.mark.parametrize(("view", "taken"), STOPS.values(), ids=STOPS)
async def test_closing_a_scan_leaves_nothing_behind(
    database: Database, postgres: Postgres, complaints: list[dict[str, Any]], view: str, taken: int, native: bool
) -> None:
    postgres.run(f"CREATE VIEW stopped AS {view}")
    tasks = asyncio.all_tasks()
    with nothing_left_open():
        async with scanning(database, "stopped", native=native) as (session, chunks):
            for _ in range(taken):
                await anext(chunks)
            await eventually(
                "the server has the statement",
                lambda: taken == 0 or last_statement(postgres, session)[1].startswith("SELECT source"),
            )
            await chunks.aclose()
            assert asyncio.all_tasks() == tasks
            pid = session.backend_pid
    await eventually(
        "the server has stopped",
        lambda: not postgres.run("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state <> 'idle'", (pid,)),
    )
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


@both_encoders
async def test_an_error_comes_after_the_rows_before_it_and_none_that_are_wrong(
    database: Database, postgres: Postgres, native: bool
) -> None:
    postgres.run("CREATE VIEW failing AS SELECT n, 1 / (n - 10) AS x FROM generate_series(1, 100) AS n")
    received = bytearray()

    async def consume() -> None:
        async with scanning(database, "failing", native=native) as (_, chunks):
            async for chunk in chunks:
                received.extend(chunk.data)

    with pytest.raises(errors.QueryFailed):
        await consume()
    right = postgres.copy("SELECT n, 1 / (n - 10) AS x FROM generate_series(1, 9) AS n")
    assert right.startswith(received)


@both_encoders
async def test_an_error_in_the_first_row_comes_before_any_byte(
    database: Database, postgres: Postgres, native: bool
) -> None:
    postgres.run("CREATE VIEW failing AS SELECT n, 1 / (n - 1) AS x FROM generate_series(1, 100) AS n")
    async with scanning(database, "failing", native=native) as (_, chunks):
        with pytest.raises(errors.QueryFailed):
            await anext(chunks)


@both_encoders
async def test_a_cancelled_consumer_is_cancelled_wherever_it_is(
    database: Database, postgres: Postgres, complaints: list[dict[str, Any]], native: bool
) -> None:
    postgres.run("CREATE VIEW long AS SELECT generate_series(1, 2000000) AS n")

    async def consume() -> None:
        async with scanning(database, "long", native=native) as (_, chunks):
            async for _ in chunks:
                pass

    for turn in range(50):
        task = asyncio.create_task(consume())
        await asyncio.sleep(turn / 2000)  # not a wait: another moment of the export each time
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    gc.collect()
    assert complaints == []
    await eventually("nothing runs on", lambda: {state for state, _ in postgres.statements()} <= {"idle"})


# --- several readers ---------------------------------------------------------------------------------------------


@pytest.fixture
async def parallel(settings: Settings) -> AsyncIterator[Database]:
    """A database whose exports may have three readers, on any machine."""
    async with open_database(replace(settings, parallel_readers=3)) as opened:
        yield opened


def make_blocks(postgres: Postgres) -> None:
    """The table `blocks`, with one row in each block and just enough blocks for several readers."""
    postgres.run("CREATE TABLE blocks (n int, filler text); ALTER TABLE blocks ALTER filler SET STORAGE PLAIN")
    postgres.run(f"INSERT INTO blocks SELECT n, repeat('x', 7000) FROM generate_series(1, {FEWEST_BLOCKS + 100}) AS n")


def readers(postgres: Postgres) -> int:
    return len(postgres.run("SELECT pid FROM pg_stat_activity WHERE application_name = 'sluice' AND state <> 'idle'"))


async def test_several_readers_give_one_file_in_order(parallel: Database, postgres: Postgres) -> None:
    make_blocks(postgres)
    async with scanning(parallel, "blocks") as (_, chunks):
        every = [await anext(chunks)]
        await eventually("three read", lambda: readers(postgres) == 3)
        every += [chunk async for chunk in chunks]
    assert b"".join(chunk.data for chunk in every) == postgres.copy("SELECT * FROM blocks")
    shares = [chunk.done for chunk in every]
    assert shares == sorted(shares)
    assert shares[0] == 0


async def test_further_readers_step_back_for_other_exports_and_come_back(
    parallel: Database, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_blocks(postgres)
    monkeypatch.setattr("server.export.strategy.RANGE_BLOCKS", 16)
    async with scanning(parallel, "blocks") as (_, chunks):
        every = [await anext(chunks)]
        await eventually("three read", lambda: readers(postgres) == 3)
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await (await stack.enter_async_context(parallel.session())).open()
            while parallel._spare_readers.in_use:
                every.append(await anext(chunks))
            # What they had started is read to its end.
            while readers(postgres) > 3:
                every.append(await anext(chunks))
        await eventually("three read again", lambda: readers(postgres) == 3)
        every += [chunk async for chunk in chunks]
    assert b"".join(chunk.data for chunk in every) == postgres.copy("SELECT * FROM blocks")


async def test_closing_a_scan_of_several_readers_leaves_nothing_behind(
    parallel: Database, postgres: Postgres, complaints: list[dict[str, Any]]
) -> None:
    make_blocks(postgres)
    tasks = asyncio.all_tasks()
    async with scanning(parallel, "blocks") as (_, chunks):
        await anext(chunks)
        await eventually("three read", lambda: readers(postgres) == 3)
        await chunks.aclose()
        # The database may still be telling PostgreSQL to stop.
        assert asyncio.all_tasks() - parallel._background == tasks
        assert parallel._spare_readers.in_use == 0
    await eventually("the server has stopped", lambda: readers(postgres) == 0)
    async with scanning(parallel, "blocks") as (_, chunks):
        assert b"".join([chunk.data async for chunk in chunks]) == postgres.copy("SELECT * FROM blocks")
    assert complaints == []
