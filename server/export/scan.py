"""ExportPlan → the chunks of the file, in order, while the relation is being read.

One reader pulls the whole query from a portal, or several that share a snapshot pull ranges of blocks (`strategy.py`
decides which). Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from server.chunk import Chunk
from server.encode.encoders import file_start
from server.errors import ExportError, MemoryBusy, ValueTooLarge
from server.events import emit
from server.export.engine import Engine
from server.export.events import ReaderFailed
from server.export.ranges import RangeReader, Ranges
from server.export.strategy import FACTS, Limits, Strategy, candidate_tables, make_strategy
from server.memory import Memory, Reservation
from server.postgres.database import Database
from server.postgres.explained import Explained
from server.postgres.portal import PortalReader, RowWriter
from server.postgres.reader import RowReader
from server.postgres.rows import Rows, Select
from server.postgres.session import Session
from server.query.grammar import shorten
from server.query.plan import ExportPlan
from server.query.sql import Statement, lock_statements, select_statement
from server.threads import wait_until_ended

# Bytes of CSV in one chunk of a streamed file. Larger chunks miss the CPU's caches and delay the first bytes; smaller
# ones make the cost of each hand-over visible. Measured in docs/performance.md.
FILE_CHUNK_BYTES = 256 << 10
# Bytes of CSV in the first chunk. Few, since nothing is sent before it is there; more than a row, since an error in it
# still becomes an HTTP status, and since a small file then needs only one read.
FIRST_CHUNK_BYTES = 32 << 10
# Seconds until a reader that has stepped back asks again: small exports should not make it come and go.
PAUSE = 0.5
# Ranges that may be taken and not yet handed over whole: one for each reader, and one more, which a reader starts
# before the file has reached it.
RANGES_OF_ONE_READER = 2
RANGES_OF_A_FURTHER_READER = 1


async def choose_strategy(engine: Engine, session: Session, plan: ExportPlan, explained: Explained) -> Strategy:
    """Return how to read the plan. explained: PostgreSQL's plan of its whole query; the relations are locked."""
    candidates = candidate_tables(plan, explained)
    facts: list[dict[str, Any]] = []
    length = 0
    if candidates.tables:
        schemas, names = (list(each) for each in zip(*candidates.tables, strict=True))
        facts = await session.query(FACTS, (schemas, names, plan.relation.oid), prepare=True)
        # As in a Bind message, which gives the length of each value in four bytes.
        length = sum(4 + len(value.encode()) for value in select_statement(plan).values)
    limits = Limits(engine.database.most_readers, length, engine.encoders.native)
    return make_strategy(plan, explained, candidates, facts, limits)


async def scan(engine: Engine, session: Session, plan: ExportPlan, strategy: Strategy) -> AsyncGenerator[Chunk, None]:
    """Yield the file in chunks, at least one. The first chunk holds the header and, if there is one, the first row.

    An ExportError before the first chunk means that nothing has been sent; later ones cut the file.
    """
    start = file_start([column.name for column in plan.columns], plan.dialect, plan.format)
    started = False
    async with contextlib.aclosing(_rows(engine, session, plan, strategy)) as chunks:
        async for chunk in chunks:
            if started:
                yield chunk
            elif chunk.data:  # before the first row an error still becomes an HTTP status
                started = True
                if len(chunk.data) <= FILE_CHUNK_BYTES:
                    yield chunk._replace(data=start + chunk.data)
                else:  # joined, it would be in memory twice
                    yield Chunk(start, 0)
                    yield chunk
    if not started:
        yield Chunk(start, 0)


async def read_rows(session: Session, statement: Statement, writer: RowWriter) -> None:
    """Pass all rows of the statement to the writer. Raise ExportError."""
    with session.rows(PortalReader(writer)) as rows:
        rows.start(Select(statement.text, statement.values))
        await _discard(rows)


async def _rows(engine: Engine, session: Session, plan: ExportPlan, strategy: Strategy) -> AsyncGenerator[Chunk, None]:
    if strategy.ranges:
        await session.read_by_blocks()
    further = strategy.readers - 1
    shared = await session.export_snapshot() if further else ("", {})
    ranges = Ranges(max(1, len(strategy.ranges)), ahead=RANGES_OF_ONE_READER)
    scan = _Scan(plan, strategy, lambda: engine.encoders.reader(plan.dialect, plan.format), ranges, engine.memory)
    # The first task takes the first range before any other reader has connected.
    tasks = [asyncio.create_task(scan.read(session, ranges.reader(permanent=True)))]
    tasks += [asyncio.create_task(scan.read_on_another_connection(engine.database, *shared)) for _ in range(further)]
    try:
        async with contextlib.aclosing(ranges.chunks()) as chunks:
            async for chunk in chunks:
                yield chunk
    finally:
        for task in tasks:
            task.cancel()
        # No reader may use its connection after the sessions are closed, however often this task is cancelled.
        await wait_until_ended(asyncio.gather(*tasks, return_exceptions=True))


@dataclass(frozen=True, slots=True)
class _Scan:
    """One scan: what its readers share.

    make_reader: returns what reads and encodes the rows of one connection. memory: for large values.
    """

    plan: ExportPlan
    strategy: Strategy
    make_reader: Callable[[], RowReader]
    ranges: Ranges
    memory: Memory

    async def read_on_another_connection(self, database: Database, snapshot: str, settings: dict[str, str]) -> None:
        """Read ranges under the snapshot of the first reader. Raise nothing: emit the error as an event.

        Steps back when other exports start, and comes back when they have ended. The file meets the error only at a
        range that cannot be given back (`RangeReader.fail`). settings: those that `Session.export_snapshot` returned
        with the snapshot.
        """
        reader = None
        try:
            while not self.ranges.all_taken:
                async with database.spare_reader() as spare:
                    if self.ranges.all_taken:
                        return
                    async with database.reader_session(snapshot) as session:
                        await session.lock(lock_statements(self.strategy.ranges.tables), settings)
                        reader = reader or self.ranges.reader()
                        with self.ranges.more_ahead(RANGES_OF_A_FURTHER_READER):
                            await self.read(session, reader, stops=spare.step_back_if_needed)
                await asyncio.sleep(PAUSE)
        except ExportError as error:
            emit(ReaderFailed(sqlstate=error.sqlstate, reason=error.detail))
        except Exception as error:
            emit(ReaderFailed(reason=f"an unexpected {type(error).__name__}", error=error))

    async def read(self, session: Session, reader: RangeReader, stops: Callable[[], bool] = lambda: False) -> None:
        """Take ranges and read them until nothing is left for this reader. Raise what made it fail.

        stops: whether to read no further range than those that were taken.
        """
        untouched = True  # nothing of the range that the reader has now was read
        # A first range is read without reserving another: readers that have just started need one too.
        reserves = False
        try:
            more = await reader.take()
            with Reservation(self.memory) as reserved, session.rows(self.make_reader()) as rows:
                while more:
                    if not rows.pending:  # the range was not reserved
                        rows.start(self._select(reader.number))
                    untouched = False
                    if await self._read_range(rows, reader, reserved, reserves=reserves and not stops()):
                        reserves = True
                        more = (bool(rows.pending) or not stops()) and await reader.take()
                    else:
                        untouched = True
                        await _discard(rows)
        except BaseException as error:
            # Another reader may read what this one could not. An error of the query would come again.
            reader.fail(error, give_back=untouched or not _of_query(error))
            raise

    async def _read_range(self, rows: Rows, reader: RangeReader, reserved: Reservation, *, reserves: bool) -> bool:
        """Read the range of the reader, whose SELECT was started, to its end. Start that of the next range meanwhile.

        reserved: of the reader. reserves: whether to start the next range. Return False if the reader has
        exchanged its range for another one. What was started is then still pending.
        """
        most = FILE_CHUNK_BYTES if reader.number else FIRST_CHUNK_BYTES
        while True:
            number = reader.reserve() if reserves else None
            if number is not None:
                rows.start(self._select(number))
            pending = rows.pending
            chunk = await rows.read(most)
            reserved.keep(rows.held_bytes)
            if rows.wanted:
                if not await reader.lead():
                    return False
                await self._reserve(rows, reserved)
            if rows.pending < pending:
                reader.end(chunk)
                return True
            if not await reader.put(chunk):
                return False
            most = FILE_CHUNK_BYTES

    async def _reserve(self, rows: Rows, reserved: Reservation) -> None:
        """Wait until there is memory for the value that stops the reader. Raise ValueTooLarge, MemoryBusy."""
        if rows.wanted > self.memory.limit:
            name = self.plan.columns[rows.wanted_column].name
            raise ValueTooLarge(
                f'A value of "{shorten(name)}" has {rows.wanted:,} bytes, and this server may hold '
                f"{self.memory.limit:,}. A value is held until it is known whether it needs quotes.",
                hint="Add quote=all: then no value is held. Or select the other columns.",
            )
        try:
            await reserved.take(rows.wanted, rows.patience)
        except TimeoutError:
            raise MemoryBusy(
                "Other exports use the memory that this server has for large values.",
                hint="Try again later, or add quote=all: then no value is held.",
            ) from None
        rows.hold()

    def _select(self, number: int) -> Select:
        """Return the SELECT of the range of this number, or of the whole query."""
        if self.strategy.ranges:
            statement = select_statement(self.plan, self.strategy.ranges[number])
            return Select(statement.text, statement.values)
        statement = select_statement(self.plan)
        return Select(statement.text, statement.values, self.strategy.batches)


def _of_query(error: BaseException) -> bool:
    return isinstance(error, ExportError) and error.of_query


async def _discard(rows: Rows) -> None:
    """Read what is pending and drop it: only then can the connection take another statement."""
    while rows.pending:
        await rows.read(FILE_CHUNK_BYTES)
        if rows.wanted:
            rows.pass_over()
