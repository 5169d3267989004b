"""The rows of SELECTs, read by both encoders from a real PostgreSQL.

On asyncio's own event loop, and some tests again on uvloop, which the server uses. What a real server does not send, or
not in such pieces, is tested in test_portal.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from server import errors
from server.postgres import messages
from server.postgres.database import Database
from server.postgres.queries import Value
from server.postgres.reader import BATCH_ROWS, Bytes, RowReader
from server.postgres.rows import Rows, Select
from server.settings import Settings
from tests.support.engines import open_database
from tests.support.live_server import eventually
from tests.support.postgres import Postgres
from tests.support.rows import (
    ENDLESS,
    MOST,
    SLEEP,
    SUSPENDING,
    HoldsNothing,
    Scenario,
    assert_usable,
    assert_used_again,
    backend,
    counting,
    encoder,
    numbers,
    open_descriptors,
    opened,
    read_all,
    read_on,
    run_on_uvloop,
)
from tests.support.waiting import sleeping_backends

# Executed as a whole, and in batches: one or two are asked for at once.
BATCHES = pytest.mark.parametrize("batches", [0, 1, 2])


@pytest.fixture(params=[True, False], ids=["native", "pure"])
def native(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# --- Statements, one after another. ---


@BATCHES
async def test_statements_follow_one_another_on_one_connection(database: Database, native: bool, batches: int) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            for count in (0, 1, 199, 200, 201, 50_000, 3):
                assert await read_all(rows, counting(count, batches)) == numbers(count)
                assert (rows.pending, rows.clean) == (0, True)
        await assert_usable(session)


@BATCHES
@pytest.mark.parametrize("most", [1, 1000, 1 << 30])
async def test_the_lines_do_not_depend_on_the_size_of_batches_and_reads(
    database: Database, native: bool, batches: int, most: int
) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            rows.start(counting(1000, batches))
            chunks = []
            while rows.pending:
                chunks.append(await rows.read(most))
    assert b"".join(chunk.data for chunk in chunks) == numbers(1000)
    assert sum(chunk.rows for chunk in chunks) == 1000
    assert all(chunk.rows == chunk.data.count(b"\n") for chunk in chunks)
    if most == 1:  # each read ends with the first row
        assert all(chunk.rows <= 1 for chunk in chunks)


@BATCHES
@pytest.mark.parametrize("count", [BATCH_ROWS - 1, BATCH_ROWS, BATCH_ROWS + 1, 2 * BATCH_ROWS, 3 * BATCH_ROWS + 1])
async def test_about_as_many_rows_as_a_batch_has(database: Database, native: bool, batches: int, count: int) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            assert await read_all(rows, counting(count, batches)) == numbers(count)
            assert rows.clean
        await assert_usable(session)
    await assert_used_again(database, session.backend_pid, native)


async def test_a_portal_that_was_read_in_batches_makes_room_for_the_next(database: Database, native: bool) -> None:
    # All portals have the same name. Their values, texts and batches change.
    async with opened(database) as session:
        for _ in range(2):
            with session.rows(encoder(native)) as rows:
                assert await read_all(rows, counting(BATCH_ROWS, 2)) == numbers(BATCH_ROWS)
                assert await read_all(rows, counting(5, 2)) == numbers(5)
                assert await read_all(rows, counting(6)) == numbers(6)
                assert await read_all(rows, Select("SELECT generate_series(1, 7)", (), 1)) == numbers(7)
                assert await read_all(rows, counting(8, 1)) == numbers(8)
            await assert_usable(session)


@dataclass
class Recorder(HoldsNothing):
    """A reader that keeps what it is told to send."""

    reader: RowReader
    started: list[bytes]

    def start(self, messages: bytes, units: int, more: bytes, /) -> None:
        self.started.append(messages)
        self.reader.start(messages, units, more)

    def read(self, wire: Bytes, wake: int, most: int, patience: int, /) -> tuple[bytes, int, int]:
        return self.reader.read(wire, wake, most, patience)

    def read_arrived(self, wire: Bytes, most: int, /) -> tuple[bytes, int, int] | None:
        return self.reader.read_arrived(wire, most)

    def failure(self) -> bytes | None:
        return self.reader.failure()

    @property
    def clean(self) -> bool:
        return self.reader.clean


async def test_a_statement_that_is_started_again_at_once_is_parsed_once(database: Database, native: bool) -> None:
    text = "SELECT generate_series($1::int, $2::int)"
    ranges: list[Sequence[Value]] = [(1, 30_000), (30_001, 30_000), (30_001, 30_001), (30_002, 70_000)]
    recorder = Recorder(encoder(native), [])
    async with opened(database) as session:
        with session.rows(recorder) as rows:
            for values in ranges:
                rows.start(Select(text, values))
            assert rows.pending == 4  # nothing was sent yet
            received = b""
            ends = []
            while rows.pending:
                pending = rows.pending
                received += (await rows.read(MOST)).data
                if rows.pending < pending:
                    ends.append(received.count(b"\n"))
            assert received == numbers(70_000)
            assert ends == [30_000, 30_000, 30_001, 70_000]
            assert rows.clean
            assert [messages.parse(text) in each for each in recorder.started] == [True, False, False, False]
            # Another text takes its place.
            assert await read_all(rows, counting(3)) == numbers(3)
            assert await read_all(rows, Select(text, (1, 2))) == numbers(2)
            assert [messages.parse(text) in each for each in recorder.started[4:]] == [False, True]
        await assert_usable(session)


async def test_the_next_statement_is_sent_while_the_one_before_is_read(database: Database, native: bool) -> None:
    select = "SELECT n, repeat('x', 100) FROM generate_series($1::int, $2::int) AS n"
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            rows.start(Select(select, (0, 9_999)))
            received = b""
            for start in range(10_000, 100_000, 10_000):
                pending = rows.pending
                received += (await rows.read(MOST)).data
                assert rows.pending == pending  # it has not ended
                rows.start(Select(select, (start, start + 9_999)))
                while rows.pending == 2:
                    received += (await rows.read(MOST)).data
            received += await read_on(rows)
            assert rows.clean
        await assert_usable(session)
    assert received == b"".join(b"%d,%s\n" % (n, b"x" * 100) for n in range(100_000))


async def test_a_session_can_read_rows_many_times(database: Database, native: bool) -> None:
    async with opened(database) as session:
        before = open_descriptors()
        for _ in range(20):
            with session.rows(encoder(native)) as rows:
                assert await read_all(rows, "SELECT 1") == b"1\n"
            await assert_usable(session)
        assert open_descriptors() == before


@BATCHES
async def test_a_connection_that_streamed_serves_the_next_session(
    database: Database, native: bool, batches: int
) -> None:
    pids = set()
    for _ in range(5):
        async with opened(database) as session:
            pids.add(session.backend_pid)
            with session.rows(encoder(native)) as rows:
                assert await read_all(rows, counting(20_000, batches)) == numbers(20_000)
    assert len(pids) == 1


async def test_a_block_without_a_statement_leaves_the_connection_as_it_was(database: Database, native: bool) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            assert (rows.pending, rows.clean) == (0, True)
        await assert_usable(session)
    await assert_used_again(database, session.backend_pid, native)


async def test_rows_are_read_only_in_an_open_transaction(database: Database, native: bool) -> None:
    async with database.session() as session:
        with pytest.raises(RuntimeError, match="not opened"):
            session.rows(encoder(native))
        await session.open()
        with session.rows(encoder(native)) as rows:
            assert await read_all(rows, "SELECT 1") == b"1\n"


@pytest.mark.parametrize("as_parameter", [True, False])
async def test_a_statement_larger_than_the_socket_takes(settings: Settings, native: bool, as_parameter: bool) -> None:
    async with open_database(settings) as database, opened(database) as session:
        # A small send buffer: the statement is sent in pieces, while the rows are waited for.
        with socket.socket(fileno=os.dup(session.connection.raw.fileno())) as shared:
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        value = os.urandom(256 << 10).hex()
        assert len(value) == 512 << 10
        select = Select("SELECT $1::text", (value,)) if as_parameter else Select(f"SELECT '{value}'::text")
        with session.rows(encoder(native)) as rows:
            assert await read_all(rows, select) == value.encode() + b"\n"
            assert await read_all(rows, "SELECT '3'::text") == b"3\n"
            assert rows.clean
        await assert_usable(session)


async def test_values_of_parameters_arrive_as_they_are(database: Database, native: bool) -> None:
    texts = [
        "",
        "NULL",
        "null",
        " ",
        "{}",
        "a,b",
        'say "hi"',
        "C:\\dir",
        "\\",
        '\\"',
        "'",
        "$1",
        "%s",
        "größe",
        "\U0001f40d",
    ]
    texts += ["a\nb", "\r", "\t", "x" * 100_000, "{{1},{2}}", ";--"]
    wanted = [{"x": text} for text in texts]
    async with opened(database) as session:
        assert await session.query("SELECT x FROM unnest($1::text[]) AS x", (texts,)) == wanted
        assert await session.query("SELECT x FROM unnest($1::text[]) AS x", ([],)) == []
        row = await session.query("SELECT $1::text AS a, $2::text[] AS b, $3::bigint AS c", (None, None, -(2**63)))
        assert row == [{"a": None, "b": None, "c": -(2**63)}]
        with session.rows(encoder(native)) as rows:
            select = Select("SELECT encode(convert_to(x, 'UTF8'), 'hex') FROM unnest($1::text[]) AS x", (texts,))
            lines = (await read_all(rows, select)).decode().split("\n")
            assert [bytes.fromhex(line.strip('"')).decode() for line in lines[:-1]] == texts


# --- Rows of unusual sizes: the reference is the server's own COPY. ---

UNUSUAL = {
    "no columns": "SELECT FROM generate_series(1, 3)",
    "no columns and no rows": "SELECT WHERE false",
    "1,600 columns": "SELECT " + ", ".join(f"repeat('{n},', 60) AS c{n}" for n in range(1600)),
    "empty values": "SELECT ''::text, NULL::text, '' FROM generate_series(1, 30000)",
    "values larger than the receive buffer": (
        "SELECT n, repeat('x', 200000), NULL::text, repeat('\"', 70000), repeat(E'a\\n', 100000), n "
        "FROM generate_series(1, 20) AS n"
    ),
    "small rows and large ones": (
        "SELECT n, repeat(CASE WHEN n % 2 = 0 THEN 'x' ELSE ',' END, (n * 7919) % 150001), n "
        "FROM generate_series(1, 100) AS n"
    ),
    "rows about as large as the receive buffer": "SELECT repeat('v', 65300 + n) FROM generate_series(1, 300) AS n",
    "a value of 30 MB": "SELECT 1, repeat('0123456789', 3000000), 2",
}


@pytest.mark.parametrize("name", UNUSUAL)
async def test_rows_of_unusual_sizes(database: Database, postgres: Postgres, native: bool, name: str) -> None:
    expected = postgres.copy(UNUSUAL[name], "HEADER false")
    async with opened(database) as session:
        for batches in (0, 1, 2):
            with session.rows(encoder(native)) as rows:
                assert await read_all(rows, Select(UNUSUAL[name], (), batches)) == expected
                assert rows.clean
        with session.rows(encoder(native)) as rows:
            assert await read_all(rows, Select(UNUSUAL[name]), most=1 << 30) == expected
        await assert_usable(session)


async def test_many_batches_of_rows_without_columns(database: Database, native: bool) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            count = 5 * BATCH_ROWS
            assert await read_all(rows, Select(f"SELECT FROM generate_series(1, {count})", (), 2)) == b"\n" * count
        await assert_usable(session)


# --- Errors. ---


@BATCHES
@pytest.mark.parametrize("n", [1, 2, 1000, BATCH_ROWS, BATCH_ROWS + 1, 2 * BATCH_ROWS, 3 * BATCH_ROWS + 1000])
async def test_an_error_ends_the_statement_and_not_the_connection(
    database: Database, native: bool, batches: int, n: int
) -> None:
    # In the first, a middle and the last row of a batch.
    select = Select("SELECT n + 0 / (n - $1::int) FROM generate_series(1, 50000) AS n", (n,), batches)
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            rows.start(select)
            received = b""

            async def rest() -> None:
                nonlocal received
                while rows.pending:
                    received += (await rows.read(100)).data

            with pytest.raises(errors.QueryFailed) as caught:
                await rest()
            assert (caught.value.sqlstate, caught.value.server_message) == ("22012", "division by zero")
            assert (received != b"") == (n >= 1000)
            assert numbers(n - 1).startswith(received)
            assert (rows.pending, rows.clean) == (0, True)
        # The transaction has failed; the connection has not.
        assert not session.statement_left_running
        with pytest.raises(errors.QueryFailed) as caught:
            await session.query("SELECT 1")
        assert caught.value.sqlstate == "25P02"
    await assert_used_again(database, session.backend_pid, native)


async def test_an_error_in_the_first_of_several_statements_ends_all(database: Database, native: bool) -> None:
    select = "SELECT n + 0 / (n - 7000) FROM generate_series($1::int, $2::int) AS n"
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            for values in ((1, 5000), (5001, 10_000), (10_001, 15_000), (15_001, 20_000)):
                rows.start(Select(select, values))
            received = b""

            async def rest() -> None:
                nonlocal received
                while rows.pending:
                    received += (await rows.read(100)).data

            with pytest.raises(errors.QueryFailed) as caught:
                await rest()
            assert caught.value.sqlstate == "22012"
            assert received.startswith(numbers(5000))
            assert numbers(6999).startswith(received)
            assert (rows.pending, rows.clean) == (0, True)
    await assert_used_again(database, session.backend_pid, native)


FAILING = [
    ("SELEC 1", errors.QueryFailed),
    ("SELECT nothing", errors.RelationGone),
    ("SELECT * FROM pg_authid_of_nobody", errors.RelationGone),
    ("SELECT 'x'::int", errors.QueryFailed),
    ("SELECT 1 / 0", errors.QueryFailed),
    ("SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(60)", errors.QueryCancelled),
    ("CREATE TABLE written (x int)", errors.QueryFailed),
    ("SELECT 1; SELECT 2", errors.QueryFailed),
]


@pytest.mark.parametrize(("sql", "error"), FAILING)
@BATCHES
async def test_a_statement_that_fails_before_its_first_row_raises_its_error(
    database: Database, native: bool, sql: str, error: type[errors.ExportError], batches: int
) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            rows.start(Select(sql, (), batches))
            with pytest.raises(error):
                await rows.read(1)
            assert (rows.pending, rows.clean) == (0, True)
    await assert_used_again(database, session.backend_pid, native)


async def test_a_value_that_the_type_of_its_parameter_rejects(database: Database, native: bool) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            rows.start(Select("SELECT $1::int", ("seven",)))
            with pytest.raises(errors.QueryFailed) as caught:
                await rows.read(1)
            assert caught.value.sqlstate == "22P02"
            assert caught.value.server_message == 'invalid input syntax for type integer: "seven"'
            assert (rows.pending, rows.clean) == (0, True)
    await assert_used_again(database, session.backend_pid, native)


async def test_a_backend_that_is_terminated_is_a_lost_connection(
    database: Database, postgres: Postgres, native: bool
) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            rows.start(SLEEP)
            reading = asyncio.create_task(rows.read(1))
            await eventually("it sleeps", lambda: backend(postgres, session)[1] == "PgSleep")
            postgres.run("SELECT pg_terminate_backend(%s)", (session.backend_pid,))
            with pytest.raises(errors.ConnectionLost):
                await reading
            assert (rows.pending, rows.clean) == (0, False)
        pid = session.backend_pid
    async with opened(database) as session:
        assert session.backend_pid != pid
        await assert_usable(session)


async def assert_lost_if_terminated_in(
    state: tuple[str, str], select: Select, database: Database, postgres: Postgres, native: bool
) -> None:
    """Read once, wait for this state of `backend`, and terminate it. The connection is lost then."""
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            rows.start(select)
            assert (await rows.read(1)).rows
            await eventually(f"the backend is {state}", lambda: backend(postgres, session) == state)
            postgres.run("SELECT pg_terminate_backend(%s, 10000)", (session.backend_pid,))
            with pytest.raises(errors.ConnectionLost):
                await read_on(rows)
            assert (rows.pending, rows.clean) == (0, False)


async def test_a_backend_terminated_between_two_reads_is_a_lost_connection(
    database: Database, postgres: Postgres, native: bool
) -> None:
    await assert_lost_if_terminated_in(("active", "ClientWrite"), ENDLESS, database, postgres, native)


async def test_a_backend_terminated_between_two_batches_is_a_lost_connection(
    database: Database, postgres: Postgres, native: bool
) -> None:
    await assert_lost_if_terminated_in(("idle in transaction", "ClientRead"), SUSPENDING, database, postgres, native)


async def test_a_statement_on_a_connection_that_is_gone_is_a_lost_connection(
    database: Database, postgres: Postgres, native: bool
) -> None:
    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            assert await read_all(rows, "SELECT 1") == b"1\n"
            postgres.run("SELECT pg_terminate_backend(%s, 10000)", (session.backend_pid,))
            with pytest.raises(errors.ConnectionLost):
                await read_all(rows, "SELECT 2")
            assert (rows.pending, rows.clean) == (0, False)


async def test_a_connection_that_was_closed_before_is_a_lost_connection(database: Database, native: bool) -> None:
    async with opened(database) as session:
        session.connection.close()
        with pytest.raises(errors.ConnectionLost):
            session.rows(encoder(native))


# --- Several connections. ---


async def test_the_event_loop_is_responsive_while_rows_are_read(database: Database, native: bool) -> None:
    iterations = 0

    async def count() -> None:
        nonlocal iterations
        while True:
            iterations += 1
            await asyncio.sleep(0)

    async with opened(database) as session:
        with session.rows(encoder(native)) as rows:
            counting = asyncio.create_task(count())
            await read_all(rows, "SELECT pg_sleep(0.2)::text")
            counting.cancel()
    assert iterations > 10


async def test_every_slot_can_stream_at_once(settings: Settings, postgres: Postgres, native: bool) -> None:
    # Each has a thread of its own: one that waits for rows does not delay the others.
    async with (
        open_database(replace(settings, max_concurrent_exports=5, parallel_readers=1)) as database,
        contextlib.AsyncExitStack() as stack,
    ):
        every: list[Rows] = []
        for _ in range(5):
            session = await stack.enter_async_context(opened(database))
            every.append(stack.enter_context(session.rows(encoder(native))))
        waiting = []
        for rows in every[:4]:
            rows.start(SLEEP)
            waiting.append(asyncio.create_task(rows.read(1)))
        await eventually("four sleep", lambda: len(sleeping_backends(postgres)) == 4)
        async with asyncio.timeout(30):
            assert await read_all(every[4], counting(100)) == numbers(100)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


# --- The same on uvloop. ---

SCENARIOS: list[Scenario] = [
    test_a_portal_that_was_read_in_batches_makes_room_for_the_next,
    test_a_session_can_read_rows_many_times,
    test_a_block_without_a_statement_leaves_the_connection_as_it_was,
    test_an_error_in_the_first_of_several_statements_ends_all,
    test_a_value_that_the_type_of_its_parameter_rejects,
    test_a_backend_that_is_terminated_is_a_lost_connection,
    test_a_backend_terminated_between_two_reads_is_a_lost_connection,
    test_a_backend_terminated_between_two_batches_is_a_lost_connection,
    test_a_statement_on_a_connection_that_is_gone_is_a_lost_connection,
    test_a_connection_that_was_closed_before_is_a_lost_connection,
]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_same_on_uvloop(settings: Settings, postgres: Postgres, native: bool, scenario: Scenario) -> None:
    run_on_uvloop(scenario, settings, postgres, native)
