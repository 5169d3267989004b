"""What the error of one reader does to the file, by kind of error and place, without PostgreSQL.

A `FakeSession` has the rows of every range and raises an error at a chosen step. The ranges, their readers and
everything that decides about an error are real.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import cast

import pytest

from server import errors, events
from server.chunk import Chunk
from server.export import ranges as ranges_module
from server.export.events import ReaderFailed
from server.export.ranges import RangeReader, Ranges
from server.export.scan import _Scan
from server.export.strategy import RANGE_BLOCKS, BlockRanges, Strategy
from server.memory import Memory
from server.postgres.database import Database
from server.postgres.reader import RowReader
from server.postgres.rows import Select
from server.postgres.server_errors import error_for
from server.postgres.session import Session
from server.postgres.spare_readers import SpareReader, SpareReaders
from server.query.catalogue import Column, Relation
from server.query.plan import make_plan
from server.query.request import parse_export_request

pytestmark = pytest.mark.timeout(30)

RANGES = 8
CHUNKS = 3
CHUNK = 1000  # bytes
RELATION = Relation(1, "public", "t", "table", False, (Column("n", "integer", False, True, False),), 10, 10)

# Errors of a connection, of the server's state or of this process: another reader may well read the range.
PASSING: list[Exception] = [
    OSError(errno.EMFILE, "too many open files"),
    MemoryError(),
    error_for("53200", "out of memory"),
    error_for("57P01", "terminated"),
    error_for("40001", "conflict"),
    errors.RelationChanged("changed"),
    errors.ServerBusy("busy"),
    RuntimeError("a bug"),
]
# Errors that the same statement would meet again, or after which it must not be repeated.
FINAL: list[Exception] = [
    error_for("22012", "division by zero"),
    error_for("42501", "denied"),
    error_for("XX000", "internal error"),
    error_for("57014", "cancelled"),
    errors.QueryTimeout("too slow"),
    errors.RelationNotFound("not found"),
]


def name_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {getattr(error, 'detail', error)}"[:40]


def chunk_of(number: int, place: int) -> bytes:
    return b"%d.%d;" % (number, place) + b"x" * CHUNK


WHOLE = b"".join(chunk_of(number, place) for number in range(RANGES) for place in range(CHUNKS))


class FakeRows:
    """`Rows` of a FakeSession. No value is large."""

    held_bytes = wanted = 0

    def __init__(self, session: FakeSession) -> None:
        self._session = session
        self._started: deque[int] = deque()  # the numbers of the ranges
        self._place = 0  # in the oldest of them

    @property
    def pending(self) -> int:
        return len(self._started)

    def __enter__(self) -> FakeRows:
        self._session.step("enter")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def start(self, select: Select) -> None:
        first, _ = select.values
        assert isinstance(first, str)
        number = int(first[1:].partition(",")[0]) // RANGE_BLOCKS
        self._session.step(f"start {number}")
        self._started.append(number)

    async def read(self, most: int) -> Chunk:
        number, place = self._started[0], self._place
        await asyncio.sleep(0)
        try:
            await self._session.wait_before(number, place)
            self._session.step(f"read {number}.{place}")
        except Exception:
            self._started.clear()
            raise
        self._place += 1
        if self._place == CHUNKS:
            self._started.popleft()
            self._place = 0
        return Chunk(chunk_of(number, place), 1)


class FakeSession:
    """A session that raises `error` at the step `at`: 'enter', 'start RANGE', or 'read RANGE.CHUNK'.

    gates: events to wait for before a chunk of a range is read.
    """

    def __init__(
        self,
        at: str = "",
        error: BaseException | None = None,
        gates: Mapping[tuple[int, int], asyncio.Event] | None = None,
    ) -> None:
        self._at = at
        self._error = error
        self._gates = gates or {}
        self.steps: list[str] = []

    def step(self, name: str) -> None:
        self.steps.append(name)
        if name == self._at:
            assert self._error is not None
            raise self._error

    async def wait_before(self, number: int, place: int) -> None:
        if (number, place) in self._gates:
            await self._gates[number, place].wait()

    def rows(self, reader: RowReader) -> FakeRows:
        return FakeRows(self)

    async def lock(self, locks: Sequence[str], settings: Mapping[str, str]) -> None:
        self.step("lock")


class FakeDatabase:
    """A database whose only reader session is this one."""

    def __init__(self, session: FakeSession) -> None:
        self._session = session

    @contextlib.asynccontextmanager
    async def reader_session(self, snapshot: str) -> AsyncIterator[FakeSession]:
        self._session.step("connect")
        yield self._session

    def spare_reader(self) -> contextlib.AbstractAsyncContextManager[SpareReader]:
        return SpareReaders(2, 1).reader()


class Scan:
    """A scan with a first reader and one further reader, which are tasks once `start` has been called."""

    def __init__(self, first: FakeSession, further: FakeSession) -> None:
        plan = make_plan(parse_export_request("t.csv", ""), RELATION)
        strategy = Strategy(
            BlockRanges([("public", "t", RANGES * RANGE_BLOCKS)]), 2, 16, parallel_plan=False, reason=""
        )
        self.ranges = Ranges(RANGES, ahead=4)
        # Nothing is encoded: the fake rows are lines already.
        self.scan = _Scan(plan, strategy, lambda: cast("RowReader", None), self.ranges, Memory(0))
        self.sessions = first, further

    def start(self) -> list[asyncio.Task[None]]:
        first, further = self.sessions
        database = cast("Database", FakeDatabase(further))
        reader = self.ranges.reader(permanent=True)
        return [
            asyncio.create_task(self.scan.read(cast("Session", first), reader)),
            asyncio.create_task(self.scan.read_on_another_connection(database, "snapshot", {})),
        ]

    async def file(self) -> tuple[bytes, BaseException | None]:
        """What the file has when it ends, and the error that ends it. Wait for all readers."""
        received, failure = b"", None
        tasks = self.start()
        async with asyncio.timeout(10):
            try:
                async for chunk in self.ranges.chunks():
                    received += chunk.data
            except (errors.ExportError, OSError, MemoryError, RuntimeError) as error:
                failure = error
            else:
                await asyncio.gather(*tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return received, failure


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    """The events so far."""
    seen: list[events.Event] = []
    monkeypatch.setattr(events, "_observers", [seen.append])
    return seen


def assert_reported(failures: list[events.Event], error: BaseException) -> None:
    """Assert that one event reports this error: an unexpected one with the exception itself."""
    (event,) = failures
    assert isinstance(event, ReaderFailed)
    if isinstance(error, errors.ExportError):
        assert (event.reason, event.error) == (error.detail, None)
    else:
        assert type(error).__name__ in event.reason
        assert event.error is error


def failure_of_a_reader(failures: list[events.Event]) -> asyncio.Event:
    """An event that is set when the first failure is reported."""
    failed = asyncio.Event()
    emit = failures.append

    def observe(event: events.Event) -> None:
        emit(event)
        failed.set()

    events._observers[:] = [observe]
    return failed


@pytest.mark.parametrize("error", PASSING, ids=name_of)
@pytest.mark.parametrize(
    "at", ["connect", "lock", "enter", "start 1", "read 1.0", "read 1.2", "start 3", "read 2.0", "read 2.2", "read 3.0"]
)
async def test_a_range_that_a_further_reader_cannot_read_is_read_by_the_first(
    failures: list[events.Event], error: BaseException, at: str
) -> None:
    # The first reader has range 0. It waits until the other one, which has range 1, then 2, and then 3, which it has
    # reserved, has failed, so that no byte of these is handed over.
    first, further = FakeSession(gates={(0, 1): failure_of_a_reader(failures)}), FakeSession(at, error)
    assert await Scan(first, further).file() == (WHOLE, None)
    assert_reported(failures, error)
    assert further.steps[-1] == at


@pytest.mark.parametrize("error", FINAL, ids=name_of)
@pytest.mark.parametrize("place", range(CHUNKS))
@pytest.mark.parametrize("number", [1, 2, 3])
async def test_an_error_of_the_query_ends_the_file_at_its_range(
    failures: list[events.Event], error: BaseException, number: int, place: int
) -> None:
    first = FakeSession(gates={(0, 1): failure_of_a_reader(failures)})
    received, failure = await Scan(first, FakeSession(f"read {number}.{place}", error)).file()
    assert failure is error
    # Everything before the failed chunk was handed over.
    assert received == WHOLE[: len(chunk_of(0, 0)) * (number * CHUNKS + place)]
    assert_reported(failures, error)


@pytest.mark.parametrize("error", PASSING + FINAL, ids=name_of)
@pytest.mark.parametrize(
    ("at", "chunks"),
    [
        *(("enter", 0), ("start 0", 0), ("read 0.0", 0), ("read 0.1", 1), ("start 1", 3)),
        *(("start 2", 3), ("read 1.0", 3), ("start 3", 6), ("read 2.0", 6), ("read 2.2", 8)),
    ],
)
async def test_any_error_of_the_first_reader_ends_the_file(error: BaseException, at: str, chunks: int) -> None:
    # The other reader finds no connection, so the first one has every range.
    received, failure = await Scan(FakeSession(at, error), FakeSession("connect", errors.ServerBusy("busy"))).file()
    assert failure is error
    assert received == WHOLE[: len(chunk_of(0, 0)) * chunks]


@pytest.mark.parametrize("error", PASSING + FINAL, ids=name_of)
@pytest.mark.parametrize("at", ["read 2.2", "read 3.0", "read 3.2"])
async def test_an_error_in_a_range_that_was_exchanged_is_not_the_fault_of_the_new_one(
    failures: list[events.Event], monkeypatch: pytest.MonkeyPatch, error: BaseException, at: str
) -> None:
    calls: list[tuple[RangeReader, bool]] = []
    fail = RangeReader.fail

    def observed(self: RangeReader, error: BaseException, *, give_back: bool = False) -> None:
        calls.append((self, give_back))
        fail(self, error, give_back=give_back)

    monkeypatch.setattr(RangeReader, "fail", observed)
    # The other reader has range 2, has reserved range 3 and waits for the file. A third one has range 0 and loses its
    # connection: the other exchanges its ranges for that one, and then meets the error in the rest of what it started.
    full = asyncio.Event()
    scan = Scan(FakeSession(), FakeSession(at, error, gates={(2, 1): full}))
    third = scan.ranges.reader()
    assert await third.take()
    further = asyncio.create_task(
        scan.scan.read_on_another_connection(cast("Database", FakeDatabase(scan.sessions[1])), "snapshot", {})
    )
    for _ in range(50):
        await asyncio.sleep(0)
    assert scan.sessions[1].steps[-2:] == ["start 3", "read 2.0"]
    monkeypatch.setattr(ranges_module, "RANGE_BUFFER_BYTES", 1)
    full.set()
    for _ in range(50):
        await asyncio.sleep(0)
    third.fail(errors.ConnectionLost("lost"), give_back=True)
    async with asyncio.timeout(10):
        await further
    assert scan.sessions[1].steps[-1] == at
    assert_reported(failures, error)
    assert [give_back for _, give_back in calls] == [True, True]  # once for each reader
    first = asyncio.create_task(scan.scan.read(cast("Session", scan.sessions[0]), scan.ranges.reader(permanent=True)))
    async with asyncio.timeout(10):
        assert b"".join([chunk.data async for chunk in scan.ranges.chunks()]) == WHOLE
        await first
