"""What the tests of rows have in common: statements, and how they are read to their end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path

import uvloop

from server.postgres.database import Database
from server.postgres.reader import RowReader
from server.postgres.rows import Rows, Select
from server.postgres.session import Session
from server.query.dialect import Dialect
from server.settings import Settings
from tests.support.engines import encoders, open_database
from tests.support.postgres import Postgres

# Bytes that a read asks for, as an export does.
MOST = 256 << 10
# More rows than the sockets and a chunk hold.
ENDLESS = Select("SELECT n, repeat('x', 1000) FROM generate_series(1, 1000000) AS n")
SLEEP = Select("SELECT pg_sleep(3600)::text")
# One batch of it fits the socket: the server suspends the portal and waits, although nobody reads.
SUSPENDING = Select("SELECT NULL::int FROM generate_series(1, 100000)", (), 1)

Scenario = Callable[..., Coroutine[object, object, None]]


class HoldsNothing:
    """The part of a RowReader that is about large values, for readers in tests that meet none."""

    wanted = column = held_bytes = 0

    def hold(self) -> None:
        raise AssertionError("there is no large value")

    pass_over = hold

    def close(self) -> None:
        pass


def encoder(native: bool) -> RowReader:
    return encoders(native=native).reader(Dialect(), "csv")


@contextlib.asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Session]:
    """Yield a session whose transaction is open."""
    async with database.session() as session:
        await session.open()
        yield session


async def read_all(rows: Rows, select: Select | str, most: int = MOST) -> bytes:
    """Return the lines of this statement."""
    rows.start(Select(select) if isinstance(select, str) else select)
    return await read_on(rows, most)


async def read_on(rows: Rows, most: int = MOST) -> bytes:
    """Return the lines of everything that was started."""
    data = b""
    while rows.pending:
        data += (await rows.read(most)).data
        if rows.wanted:
            rows.hold()
    return data


def counting(count: int, batches: int = 0) -> Select:
    """Return a SELECT of the numbers from 1 to `count`."""
    return Select("SELECT generate_series(1, $1::int)", (count,), batches)


def numbers(last: int, first: int = 1) -> bytes:
    return b"".join(b"%d\n" % n for n in range(first, last + 1))


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
    """Check that queries run on the connection, with the event loop watching the descriptor."""
    assert session.connection.clean
    assert not session.statement_left_running
    async with asyncio.timeout(30):  # an answer that the event loop does not watch for never arrives
        assert await session.query("SELECT 1 AS one") == [{"one": 1}]
        assert await session.query("SELECT pg_sleep(0.01)::text AS x") == [{"x": ""}]


async def assert_used_again(database: Database, pid: int, native: bool) -> None:
    """Check that the next session has the same connection, and that rows can be read from it."""
    async with opened(database) as session:
        assert session.backend_pid == pid
        with session.rows(encoder(native)) as rows:
            assert await read_all(rows, counting(1000)) == numbers(1000)


def run_on_uvloop(scenario: Scenario, settings: Settings, postgres: Postgres, native: bool) -> None:
    """Run a test on uvloop, with the fixtures that it asks for."""

    async def run_scenario() -> None:
        async with open_database(settings) as database:
            given = {"database": database, "settings": settings, "postgres": postgres, "native": native}
            await scenario(**{name: given[name] for name in inspect.signature(scenario).parameters})

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run_scenario())
