"""How a relation is read. Streamed: how much libpq holds, how far reading runs ahead, and stopping in the middle.
Fetched, for the pure-Python encoder: the sizes of the batches and the FETCH that runs ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import importlib
import itertools
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from server import errors
from server.chunk import Chunk
from server.encode.encoders import LIBPQ_FUNCTIONS
from server.export.pipeline import OpenExport
from server.export.ranges import RANGE_BUFFER_BYTES
from server.export.scan import FILE_CHUNK_BYTES, GROWTH
from server.export.strategy import CHUNK_ROWS, CHUNK_ROWS_LARGE, FEWEST_BLOCKS
from server.postgres.database import Database
from server.postgres.libpq import HAS_CHUNKS, LIBPQ, result_memory
from server.postgres.session import Batch, Session
from server.query.catalogue import RelationName
from server.query.plan import LARGE_TOAST_FETCH_ROWS, make_plan
from server.query.request import ExportRequest
from server.settings import Settings
from tests.support.engines import encoders, make_engine, open_database
from tests.support.live_server import eventually, wait_until
from tests.support.postgres import Postgres

# Bytes that libpq may hold for one FETCH.
FEW_MEGABYTES = 8 << 20


@dataclass(frozen=True)
class Fetched:
    """One FETCH: the rows requested, the rows received, and the bytes that libpq holds for them."""

    asked: int
    count: int
    memory: int


class WatchedSession(Session):
    """A session that keeps a record of its FETCHes."""

    fetched: list[Fetched]

    async def fetch(self, rows: int) -> Batch:
        batch = await super().fetch(rows)
        self.fetched.append(Fetched(rows, batch.count, batch.memory))
        return batch


@contextlib.asynccontextmanager
async def scanning(database: Database, name: str, *, native: bool = True) -> AsyncIterator[tuple[WatchedSession, Any]]:
    """A session on the relation and its chunks, not started yet. The chunks are closed at the end."""
    async with database.session() as session:
        session.__class__ = WatchedSession
        assert isinstance(session, WatchedSession)
        session.fetched = []
        plan = make_plan(ExportRequest(RelationName(name), "csv"), await session.relation(RelationName(name)))
        export = OpenExport(make_engine(database, native=native), session, plan)
        async with contextlib.aclosing(export.chunks()) as chunks:
            yield session, chunks


@pytest.fixture(autouse=True)
def _native_encoder() -> None:
    encoders(native=True)
    assert HAS_CHUNKS


async def fetch_all(database: Database, name: str) -> tuple[bytes, list[Fetched]]:
    """The file and its FETCHes, read for the pure-Python encoder."""
    async with scanning(database, name, native=False) as (session, chunks):
        data = b"".join([chunk.data async for chunk in chunks])
        return data, session.fetched


def last_statement(postgres: Postgres, session: Session) -> tuple[str, str, str]:
    """(state, query, what it waits for) of the session's backend."""
    (row,) = postgres.run(
        "SELECT state, query, coalesce(wait_event, '') FROM pg_stat_activity WHERE pid = %s", (session.backend_pid,)
    )
    state, query, waits_for = row
    return state, query, waits_for


# --- streamed: what is held, and how far it runs ahead -----------------------------------------------------------


@dataclass
class Held:
    """What the native encoder received. rows, memory: the most rows and bytes in one PGresult. results: how many."""

    rows: int = 0
    memory: int = 0
    results: int = 0


@pytest.fixture
def held() -> Iterator[Held]:
    """What libpq returns from now on, seen by the function that frees every result."""
    held = Held()

    def clear(result: int) -> None:
        held.rows = max(held.rows, LIBPQ.PQntuples(ctypes.c_void_p(result)))
        held.memory = max(held.memory, result_memory(result))
        held.results += 1
        LIBPQ.PQclear(result)

    watched = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(clear)
    native: Any = importlib.import_module("server.encode._encode")
    functions = {name: ctypes.cast(LIBPQ[name], ctypes.c_void_p).value for name in LIBPQ_FUNCTIONS}
    native.bind(functions | {"PQclear": ctypes.cast(watched, ctypes.c_void_p).value})
    yield held
    native.bind(functions)


async def stream_all(database: Database, name: str) -> list[Chunk]:
    async with scanning(database, name) as (session, chunks):
        every = [chunk async for chunk in chunks]
        assert session.fetched == []
        return every


async def test_a_streamed_file_is_the_bytes_of_copy_in_chunks(
    database: Database, postgres: Postgres, held: Held
) -> None:
    chunks = await stream_all(database, "users")
    assert b"".join(chunk.data for chunk in chunks) == postgres.copy("SELECT * FROM users")
    assert sum(chunk.rows for chunk in chunks) == postgres.run("SELECT count(*) FROM users")[0][0]
    # The first comes as soon as there is a row. The others are large enough that the cost of a chunk is negligible.
    assert len(chunks[0].data) < FILE_CHUNK_BYTES / 2
    assert max(len(chunk.data) for chunk in chunks) < 2 * FILE_CHUNK_BYTES
    assert held.rows == CHUNK_ROWS
    assert held.memory < 1 << 20


# Large values that the catalogue does not show: libpq must hold few rows at any time.
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


def make_sudden(postgres: Postgres, kind: str, storage: str, large: str) -> None:
    """The relation `sudden`: thousands of tiny rows, then 60 of a megabyte each."""
    query = SUDDEN.format(large=large)
    if kind == "VIEW":
        postgres.run(f"CREATE VIEW sudden AS {query}")
        return
    postgres.run(f"CREATE TABLE sudden (n int, large text); ALTER TABLE sudden ALTER large SET STORAGE {storage}")
    postgres.run(f"INSERT INTO sudden {query}")


@pytest.mark.parametrize("analyzed", [False, True], ids=["fresh", "analyzed"])
@pytest.mark.parametrize("values", LARGE_VALUES)
async def test_libpq_holds_few_rows_where_they_may_be_large(
    database: Database, postgres: Postgres, held: Held, values: str, analyzed: bool
) -> None:
    make_sudden(postgres, *LARGE_VALUES[values])
    if analyzed and LARGE_VALUES[values][0] == "TABLE":
        postgres.run("ANALYZE sudden")
    chunks = await stream_all(database, "sudden")
    data = b"".join(chunk.data for chunk in chunks)
    assert data == postgres.copy("SELECT * FROM sudden")
    assert held.rows <= CHUNK_ROWS_LARGE
    # A megabyte each: what libpq and then a chunk hold at once.
    assert held.memory < (CHUNK_ROWS_LARGE + 1) * 1_100_000
    assert max(len(chunk.data) for chunk in chunks) < FILE_CHUNK_BYTES + (CHUNK_ROWS_LARGE + 1) * 1_100_000


async def test_wide_rows_come_one_by_one(database: Database, postgres: Postgres, held: Held) -> None:
    postgres.run("CREATE TABLE wide (n int, large text); ALTER TABLE wide ALTER large SET STORAGE EXTERNAL")
    postgres.run("INSERT INTO wide SELECT n, repeat('x', 4000000) FROM generate_series(1, 12) AS n; ANALYZE wide")
    chunks = await stream_all(database, "wide")
    assert b"".join(chunk.data for chunk in chunks) == postgres.copy("SELECT * FROM wide")
    assert held.rows == 1


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


# --- fetched: the sizes of the batches ---------------------------------------------------------------------------


async def test_batches_start_with_one_row_and_grow_eightfold_at_most(database: Database, postgres: Postgres) -> None:
    data, fetched = await fetch_all(database, "users")
    assert data == postgres.copy("SELECT * FROM users")
    assert fetched[0].asked == 1
    for before, after in itertools.pairwise(fetched):
        assert after.asked <= before.count * GROWTH
    assert GROWTH <= 8
    # Narrow rows come in batches large enough that the cost of a round trip is negligible.
    assert max(batch.memory for batch in fetched) > 256 << 10
    assert max(batch.memory for batch in fetched) < 2 << 20


@pytest.mark.parametrize("kind", ["TABLE", "VIEW"])
@pytest.mark.parametrize("rows", [1, 5, 20])
async def test_rows_of_a_megabyte_come_one_by_one(database: Database, postgres: Postgres, kind: str, rows: int) -> None:
    query = f"SELECT n, repeat('x', 1000000) AS large FROM generate_series(1, {rows}) AS n"
    postgres.run(f"CREATE {kind} wide AS {query}")
    data, fetched = await fetch_all(database, "wide")
    assert data == postgres.copy(query)
    assert {batch.asked for batch in fetched} == {1}
    large = [batch for batch in fetched if batch.memory > FEW_MEGABYTES]
    assert len(large) <= 1


async def test_rows_that_grow_come_in_fewer(database: Database, postgres: Postgres) -> None:
    query = "SELECT n, repeat('x', n * 20) AS large FROM generate_series(1, 3000) AS n"
    postgres.run(f"CREATE TABLE growing AS {query}")
    data, fetched = await fetch_all(database, "growing")
    assert data == postgres.copy(query)
    large = [batch for batch in fetched if batch.memory > FEW_MEGABYTES]
    assert len(large) <= 1
    assert fetched[-1].asked < max(batch.asked for batch in fetched)


async def test_a_large_toast_table_means_small_batches(database: Database, postgres: Postgres) -> None:
    # 2,000 narrow rows, then 20 of 1 MB each: the rows before do not predict the size of the next one.
    postgres.run("CREATE TABLE mixed (n int, large text); ALTER TABLE mixed ALTER COLUMN large SET STORAGE EXTERNAL")
    postgres.run(
        "INSERT INTO mixed "
        "SELECT n, CASE WHEN n > 2000 THEN repeat('x', 1000000) END FROM generate_series(1, 2020) AS n"
    )
    data, fetched = await fetch_all(database, "mixed")
    assert data == postgres.copy("SELECT * FROM mixed")
    assert max(batch.asked for batch in fetched) == LARGE_TOAST_FETCH_ROWS <= 32


@pytest.mark.parametrize("kind", ["TABLE", "VIEW"])
async def test_after_one_batch_of_large_rows_batches_are_small(
    database: Database, postgres: Postgres, kind: str
) -> None:
    # Compressed in TOAST, or computed by the view: the catalogue does not show their size, and one FETCH is held whole
    # (docs/architecture.md). There may be one such batch, not two.
    query = "SELECT n, CASE WHEN n > 2000 THEN repeat('x', 1000000) END AS large FROM generate_series(1, 2060) AS n"
    postgres.run(f"CREATE {kind} mixed AS {query}")
    data, fetched = await fetch_all(database, "mixed")
    assert data == postgres.copy("SELECT * FROM mixed")
    large = [batch for batch in fetched if batch.memory > FEW_MEGABYTES]
    assert len(large) <= 1


# --- fetched: one FETCH ahead ------------------------------------------------------------------------------------


def has_arrived(postgres: Postgres, session: Session, statement: str) -> Callable[[], bool]:
    return lambda: last_statement(postgres, session)[1] == statement


async def test_the_next_fetch_is_sent_before_a_chunk_is_handed_out(database: Database, postgres: Postgres) -> None:
    async with scanning(database, "users", native=False) as (session, chunks):
        for following in (8, 64, 512):
            await anext(chunks)
            # This blocks the event loop: the statement was sent before the chunk came.
            wait_until(
                "the next FETCH has arrived", has_arrived(postgres, session, f"FETCH FORWARD {following} FROM sluice")
            )


async def test_the_server_works_while_a_chunk_is_written(database: Database, postgres: Postgres) -> None:
    postgres.run(
        "CREATE VIEW slow AS SELECT n, CASE WHEN n = 2 THEN pg_sleep(60)::text END AS x FROM generate_series(1, 9) AS n"
    )
    async with scanning(database, "slow", native=False) as (session, chunks):
        assert (await anext(chunks)).data == b"n,x\n1,\n"
        wait_until("the server is at work", lambda: last_statement(postgres, session)[0] == "active")


@pytest.mark.parametrize(("taken", "rows_read"), [(1, 1 + 8), (2, 1 + 8 + 64), (3, 1 + 8 + 64 + 512)])
async def test_a_consumer_that_stops_leaves_one_batch_ahead(
    database: Database, postgres: Postgres, taken: int, rows_read: int
) -> None:
    # Each row that the server computes takes a lock, which can be counted from outside.
    postgres.run(
        "CREATE VIEW counted AS SELECT n, pg_try_advisory_xact_lock_shared(4711, n) AS locked "
        "FROM generate_series(1, 5000) AS n"
    )

    def rows_computed() -> int:
        return int(postgres.run("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 4711")[0][0])

    async with scanning(database, "counted", native=False) as (session, chunks):
        for _ in range(taken):
            await anext(chunks)
        await asyncio.to_thread(
            wait_until,
            "the batch ahead is there",
            lambda: last_statement(postgres, session)[0] == "idle in transaction",
        )
        # Time in which the event loop and the server could do more than they should.
        await asyncio.sleep(0.1)
        assert rows_computed() == rows_read
        assert len(session.fetched) == taken + 1


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


def only_cancelled_statements(heard: list[dict[str, Any]]) -> bool:
    """Return whether aiopg has reported only cancelled statements, which it reports besides raising."""
    return all(getattr(context.get("exception"), "pgcode", None) == "57014" for context in heard)


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


@pytest.mark.parametrize("native", [True, False], ids=["streamed", "fetched"])
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
            start = "SELECT source" if native else "FETCH"
            await eventually(
                "the server has the statement",
                lambda: taken == 0 or last_statement(postgres, session)[1].startswith(start),
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
    assert only_cancelled_statements(complaints), complaints


@pytest.mark.parametrize("native", [True, False], ids=["streamed", "fetched"])
async def test_an_error_comes_after_the_rows_before_it_and_none_that_are_wrong(
    database: Database, postgres: Postgres, native: bool
) -> None:
    postgres.run("CREATE VIEW failing AS SELECT n, 1 / (n - 10) AS x FROM generate_series(1, 100) AS n")
    received = bytearray()

    async def consume() -> None:
        async with scanning(database, "failing", native=native) as (_, chunks):
            async for chunk in chunks:
                received.extend(chunk.data)

    with pytest.raises(errors.InvalidRequest):
        await consume()
    right = postgres.copy("SELECT n, 1 / (n - 10) AS x FROM generate_series(1, 9) AS n")
    assert right.startswith(received)
    assert received.count(b"\n") - 1 == (CHUNK_ROWS_LARGE if native else 9)


async def test_an_error_among_the_first_rows_comes_before_any_byte(database: Database, postgres: Postgres) -> None:
    postgres.run(
        f"CREATE VIEW failing AS SELECT n, 1 / (n - {CHUNK_ROWS_LARGE}) AS x FROM generate_series(1, 100) AS n"
    )
    async with scanning(database, "failing") as (_, chunks):
        with pytest.raises(errors.InvalidRequest):
            await anext(chunks)


@pytest.mark.parametrize("native", [True, False], ids=["streamed", "fetched"])
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
    assert only_cancelled_statements(complaints), complaints
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
        # All spare readers have been given back.
        with parallel.spare_readers(1000) as spare:
            assert spare == 4
    await eventually("the server has stopped", lambda: readers(postgres) == 0)
    async with scanning(parallel, "blocks") as (_, chunks):
        assert b"".join([chunk.data async for chunk in chunks]) == postgres.copy("SELECT * FROM blocks")
    assert only_cancelled_statements(complaints), complaints
