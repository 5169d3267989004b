"""Readers that lose their connection, against PostgreSQL: the others read the ranges that they give back.

A reader is held at a chosen row. The column `mark` has an equality operator of its own, which waits for an advisory
lock at the rows that are marked 'wait' and is true for all of them; so a download with the filter mark=eq.go gives
every row, and stops at the marked ones as long as the test holds the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from server import errors, events
from server.export.events import ReaderFailed
from server.export.pipeline import OpenExport
from server.export.strategy import RANGE_BLOCKS
from server.postgres.database import Database
from server.query.catalogue import RelationName
from server.query.plan import make_plan
from server.query.request import parse_export_request
from server.settings import Settings
from tests.support.engines import make_engine, open_database
from tests.support.live_server import LiveServer, eventually, wait_until
from tests.support.postgres import Postgres
from tests.support.raw_http import Client

pytestmark = pytest.mark.slow

LOCK = 4712
# In 1,200 blocks, so five ranges; 16 rows in a block and 4,000 bytes in a row, so 17 MB of the file in a range. That is
# more than the readers and the sockets hold.
ROWS = 20_000
# Downloads until another reader than the first one has taken the marked range.
ATTEMPTS = 30
# Three readers take the ranges 0, 1 and 2. The first one ends its range first, since the file waits for it, and takes
# this one, unless the others connect late. So no number of attempts finds another reader there.
RANGE_OF_THE_FIRST = 3

# Rows are marked with the number of their range, for which their reader then waits for a lock of its own.
RANGES = range(5)
SETUP = [
    # A base type, since only that has operators of its own. Its values are text.
    "CREATE TYPE mark",
    "CREATE FUNCTION mark_in(cstring) RETURNS mark LANGUAGE internal IMMUTABLE STRICT AS 'textin'",
    "CREATE FUNCTION mark_out(mark) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout'",
    "CREATE TYPE mark (INPUT = mark_in, OUTPUT = mark_out, LIKE = text)",
    f"""
    CREATE FUNCTION mark_is(mark, mark) RETURNS boolean LANGUAGE plpgsql AS $$
    BEGIN
        IF $1::text <> 'go' THEN PERFORM pg_advisory_xact_lock_shared({LOCK}, $1::text::int); END IF;
        RETURN true;
    END$$
    """,
    "CREATE OPERATOR = (LEFTARG = mark, RIGHTARG = mark, FUNCTION = mark_is)",
    "CREATE TABLE marked (n int, mark mark, filler text) WITH (fillfactor = 20, autovacuum_enabled = off)",
    # One value, compressed once and then copied as it is.
    "CREATE TEMPORARY TABLE single (filler text)",
    "INSERT INTO single VALUES (repeat('x', 4000))",
    f"INSERT INTO marked SELECT n, 'go', filler FROM single, generate_series(1, {ROWS}) AS n",
    "DROP TABLE single",
    "ANALYZE marked",
]


@pytest.fixture
def held(postgres: Postgres) -> Iterator[Callable[[Sequence[int]], None]]:
    """Make the table, hold the locks, and return what marks all rows of these blocks with their range."""
    for statement in SETUP:
        postgres.run(statement)
    postgres.run(f"SELECT pg_advisory_lock({LOCK}, n) FROM generate_series(0, {RANGES.stop}) AS n")

    def mark(blocks: Sequence[int]) -> None:
        for block in blocks:
            postgres.run(
                f"UPDATE marked SET mark = '{block // RANGE_BLOCKS}' "
                f"WHERE ctid >= '({block},0)' AND ctid < '({block + 1},0)'"
            )
        # The new rows are in the same blocks: there is space in each.
        marked = postgres.run("SELECT DISTINCT (ctid::text::point)[0]::int FROM marked WHERE mark::text <> 'go'")
        assert {block for (block,) in marked} == set(blocks)

    yield mark
    postgres.run("SELECT pg_advisory_unlock_all()")
    postgres.run("DROP TABLE marked; DROP TYPE mark CASCADE")


def readers_at_marks(postgres: Postgres) -> dict[int, int]:
    """The backends that wait for a lock, and the number of the range that each reads."""
    return dict(
        postgres.run(
            "SELECT pid, objid::int FROM pg_locks "
            f"WHERE locktype = 'advisory' AND classid = {LOCK} AND mode = 'ShareLock' AND NOT granted"
        )
    )


def readers_at_rest(postgres: Postgres) -> list[tuple[int, str]]:
    """The backends that wait until their rows are taken, and their statements."""
    return postgres.run(
        "SELECT pid, query FROM pg_stat_activity WHERE application_name = 'sluice' "
        "AND query LIKE '%ctid%' AND wait_event = 'ClientWrite' ORDER BY pid"
    )


def terminate(postgres: Postgres, pid: int) -> None:
    assert postgres.run(f"SELECT pg_terminate_backend({pid})") == [(True,)]


# --- under gunicorn ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranges", "block"),
    [([1], 0), ([1], 20), ([2], 0), ([2], 20), ([1, 2], 0), ([1, 2], 20)],
    ids=["second", "second, partly read", "third", "third, partly read", "both", "both, partly read"],
)
def test_the_file_is_whole_though_readers_die_before_their_ranges_are_handed_over(
    start_live: Callable[..., LiveServer],
    postgres: Postgres,
    held: Callable[[Sequence[int]], None],
    ranges: list[int],
    block: int,
) -> None:
    held([number * RANGE_BLOCKS + block for number in ranges])
    server = start_live(PARALLEL_READERS="3")
    right = postgres.copy("SELECT * FROM marked")
    with Client(server.connect(receive_buffer=4096)) as client:
        client.send("/export/marked.csv?mark=eq.go", headers={"X-Request-Id": "whole"})
        wait_until("readers wait at the marks", lambda: set(readers_at_marks(postgres).values()) == set(ranges))
        for pid in readers_at_marks(postgres):  # read once: another reader may take the range soon
            terminate(postgres, pid)
        wait_until(
            "the server has noticed",
            lambda: sum("a reader ended early" in line for line in server.log) == len(ranges),
        )
        postgres.run("SELECT pg_advisory_unlock_all()")
        answer = client.read()
    assert (answer.status, answer.ending) == (200, "terminator")
    assert answer.body == right
    line = server.export_line("whole")
    assert (line["outcome"], line["rows"], line["scan"]) == ("complete", str(ROWS), "cursor, block ranges")
    lost = [line for line in server.log if "a reader ended early" in line]
    assert all("requestId=whole" in line and "connection to the database was lost" in line for line in lost)
    wait_until("PostgreSQL has stopped", lambda: {state for state, _ in postgres.statements()} <= {"idle"})


# --- in this process ---------------------------------------------------------------------------------------------


@pytest.fixture
async def parallel(settings: Settings) -> AsyncIterator[Database]:
    """A database whose exports may have three readers."""
    async with open_database(replace(settings, parallel_readers=3)) as opened:
        yield opened


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[ReaderFailed]:
    """The readers that have failed so far."""
    seen: list[ReaderFailed] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, ReaderFailed):
            seen.append(event)

    monkeypatch.setattr(events, "_observers", [observe])
    return seen


class Download:
    """An export in this process. It takes its chunks as they come, until `finish` or an error."""

    def __init__(self, export: OpenExport) -> None:
        self.received = bytearray()
        self._reading = asyncio.create_task(self._read(export))

    async def _read(self, export: OpenExport) -> None:
        async with contextlib.aclosing(export.chunks()) as chunks:
            async for chunk in chunks:
                self.received += chunk.data

    async def finish(self) -> bytes:
        async with asyncio.timeout(60):
            await self._reading
        return bytes(self.received)

    async def stop(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])


@contextlib.asynccontextmanager
async def downloading(database: Database) -> AsyncIterator[Download]:
    async with database.session() as session:
        relation = await session.relation(RelationName("marked"), filtered={"mark"})
        plan = make_plan(parse_export_request("marked.csv", "mark=eq.go"), relation)
        download = Download(OpenExport(make_engine(database), session, plan))
        try:
            yield download
        finally:
            await download.stop()


def first_reader(postgres: Postgres) -> int:
    """The backend of the first reader, whose transaction is the oldest."""
    ((pid,),) = postgres.run(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'sluice' AND xact_start IS NOT NULL "
        "ORDER BY xact_start LIMIT 1"
    )
    return int(pid)


def moved_on(postgres: Postgres, pid: int) -> bool:
    """Whether a backend waits for the lock, but this one does not."""
    waiting = readers_at_marks(postgres)
    return bool(waiting) and pid not in waiting


@pytest.mark.parametrize("number", [1, 2, 3, 4])
async def test_a_reader_that_waits_for_the_file_reads_the_range_that_the_file_waits_for(
    parallel: Database,
    postgres: Postgres,
    held: Callable[[Sequence[int]], None],
    failures: list[ReaderFailed],
    number: int,
) -> None:
    held([number * RANGE_BLOCKS])
    right = postgres.copy("SELECT * FROM marked")
    before = postgres.copy(f"SELECT * FROM marked WHERE ctid < '({number * RANGE_BLOCKS},0)'")
    # While ranges are left, the others are ahead of the file and wait for it.
    expected = {1: 2, 2: 2, 3: 1, 4: 0}[number]
    for _ in range(ATTEMPTS):
        async with downloading(parallel) as download:
            await eventually("a reader waits at the mark", lambda: readers_at_marks(postgres))
            await eventually("the file has come to the mark", lambda: len(download.received) == len(before))
            await eventually("the others wait", lambda: len(readers_at_rest(postgres)) == expected)
            ((pid, reads),) = readers_at_marks(postgres).items()
            assert reads == number
            first = first_reader(postgres)
            terminate(postgres, pid)
            if pid == first:  # any reader may have taken this range
                with pytest.raises(errors.ConnectionLost):
                    await download.finish()
                assert download.received == before
                if number == RANGE_OF_THE_FIRST:
                    return
                continue
            # One of the others has dropped what it had read of its own range and waits at the mark instead.
            await eventually(
                "another reader waits at the mark",
                functools.partial(moved_on, postgres, pid),
            )
            assert [*readers_at_marks(postgres).values()] == [number]
            assert download.received == before
            postgres.run("SELECT pg_advisory_unlock_all()")
            assert await download.finish() == right
        assert len(failures) == 1
        return
    pytest.fail(f"the first reader has taken range {number} in each of {ATTEMPTS} attempts")


async def test_a_reader_that_dies_after_rows_of_its_range_were_handed_over_ends_the_file(
    parallel: Database, postgres: Postgres, held: Callable[[Sequence[int]], None]
) -> None:
    held([RANGE_BLOCKS + 20])
    right = postgres.copy("SELECT * FROM marked")
    before = postgres.copy(f"SELECT * FROM marked WHERE ctid < '({RANGE_BLOCKS},0)'")
    async with downloading(parallel) as download:
        await eventually("rows of the range are handed over", lambda: len(download.received) > len(before))
        await eventually("its reader waits at the mark", lambda: readers_at_marks(postgres))
        ((pid, number),) = readers_at_marks(postgres).items()
        assert number == 1
        terminate(postgres, pid)
        with pytest.raises(errors.ConnectionLost):
            await download.finish()
        assert len(before) < len(download.received) < len(right)
        assert right.startswith(download.received)


async def test_a_query_that_is_cancelled_ends_the_file_though_nothing_of_the_range_was_handed_over(
    parallel: Database, postgres: Postgres, held: Callable[[Sequence[int]], None]
) -> None:
    held([RANGE_BLOCKS])
    before = postgres.copy(f"SELECT * FROM marked WHERE ctid < '({RANGE_BLOCKS},0)'")
    async with downloading(parallel) as download:
        await eventually("a reader waits at the mark", lambda: readers_at_marks(postgres))
        ((pid, _),) = readers_at_marks(postgres).items()
        assert postgres.run(f"SELECT pg_cancel_backend({pid})") == [(True,)]
        with pytest.raises(errors.QueryCancelled):
            await download.finish()
        assert download.received == before
