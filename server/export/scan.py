"""ExportPlan → the chunks of the file, in order, while the relation is being read.

Two ways to read give the same bytes. Streamed: SELECTs whose rows are encoded in threads as they arrive, by one reader
or by several that share a snapshot (`strategy.py` decides which). Fetched: the batches of a cursor, for the pure-Python
encoder and for a driver whose libpq is older than 17. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

from server.chunk import Chunk
from server.encode.encoders import Encoder, NativeEncoder, file_start
from server.errors import ExportError
from server.events import emit
from server.export.engine import Engine
from server.export.events import ReaderFailed
from server.export.ranges import RangeReader, Ranges
from server.export.strategy import FACTS, Candidates, Limits, Strategy, candidate_tables, make_strategy
from server.postgres.database import Database
from server.postgres.explained import Explained
from server.postgres.rows import Rows
from server.postgres.session import Batch, Session
from server.query.plan import ExportPlan
from server.query.sql import lock_statement, select_statement
from server.threads import cancel_and_wait, wait_until_ended

# Bytes of CSV in one chunk of a streamed file. Larger chunks miss the CPU's caches and delay the first bytes; smaller
# ones make the cost of each hand-over visible. Measured in docs/performance.md.
FILE_CHUNK_BYTES = 256 << 10
# Ranges that may be taken and not yet handed over whole, besides one for each reader: a reader whose range has ended
# starts the next one before the file has reached it.
RANGES_AHEAD = 1

# Rows of the first FETCH. One, since a row may hold a gigabyte, and since the first byte is then sent at once.
FIRST_ROWS = 1
# A FETCH asks for at most this many times the rows of the one before.
GROWTH = 8
# Bytes that libpq should hold for one FETCH.
BATCH_BYTES = 512 << 10


async def choose_strategy(engine: Engine, session: Session, plan: ExportPlan, explained: Explained) -> Strategy:
    """Return how to read the plan. explained: PostgreSQL's plan of its whole query; the relations are locked."""
    streams = engine.encoders.streams
    if streams:
        candidates = candidate_tables(plan, explained, session.server_version)
    else:
        candidates = Candidates(reason="fetched from a cursor")
    facts: list[dict[str, Any]] = []
    if candidates.tables:
        schemas, names = (list(each) for each in zip(*candidates.tables, strict=True))
        facts = await session.query(FACTS, {"schemas": schemas, "names": names, "relation": plan.relation.oid})
    statement = select_statement(plan)
    length = len(session.bound(statement.text, statement.values))
    return make_strategy(plan, explained, candidates, facts, Limits(engine.database.most_readers, length, streams))


async def scan(engine: Engine, session: Session, plan: ExportPlan, strategy: Strategy) -> AsyncGenerator[Chunk, None]:
    """Yield the file in chunks, at least one. The first chunk holds the header and, if there is one, the first row.

    An ExportError before the first chunk means that nothing has been sent; later ones cut the file.
    """
    start = file_start([column.name for column in plan.columns], plan.dialect, plan.format)
    if strategy.streams:
        encoder = engine.encoders.for_streams(plan.dialect, plan.format)
        chunks = _streamed(engine.database, session, plan, strategy, encoder)
    else:
        chunks = _fetched(session, plan, engine.encoders.for_batches(plan.dialect, plan.format))
    started = False
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if started:
                yield chunk
            elif chunk.rows:  # before the first row an error still becomes an HTTP status
                started = True
                yield chunk._replace(data=start + chunk.data)
    if not started:
        yield Chunk(start, 0)


async def _streamed(
    database: Database, session: Session, plan: ExportPlan, strategy: Strategy, encoder: NativeEncoder
) -> AsyncGenerator[Chunk, None]:
    await session.check_snapshot(streaming=True, by_blocks=bool(strategy.ranges))
    with database.spare_readers(strategy.readers - 1) as spare:
        shared = await session.export_snapshot() if spare else ("", {})
        ranges = Ranges(max(1, len(strategy.ranges)), ahead=1 + spare + RANGES_AHEAD)
        scan = _Streamed(plan, strategy, encoder, ranges)
        # The first task takes the first range before any other reader has connected.
        tasks = [asyncio.create_task(scan.read(session, encoder, ranges.reader(permanent=True)))]
        tasks += [asyncio.create_task(scan.read_on_another_connection(database, *shared)) for _ in range(spare)]
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
class _Streamed:
    """One streamed scan: what its readers share. encoder: of the first reader; the others get copies of it."""

    plan: ExportPlan
    strategy: Strategy
    encoder: NativeEncoder
    ranges: Ranges

    async def read_on_another_connection(self, database: Database, snapshot: str, settings: dict[str, str]) -> None:
        """Read ranges under the snapshot of the first reader. Raise nothing: emit the error as an event.

        The file meets the error only at a range that cannot be given back (`RangeReader.fail`). settings: those that
        `Session.export_snapshot` returned with the snapshot.
        """
        try:
            async with database.reader_session(snapshot) as session:
                await session.lock(lock_statement(self.strategy.ranges.tables), settings)
                await session.check_snapshot(streaming=True, by_blocks=True)
                await self.read(session, self.encoder.copy(), self.ranges.reader())
        except ExportError as error:
            emit(ReaderFailed(reason=error.detail))
        except Exception as error:
            emit(ReaderFailed(reason=f"an unexpected {type(error).__name__}", error=error))

    async def read(self, session: Session, encoder: NativeEncoder, reader: RangeReader) -> None:
        """Take ranges and read them until nothing is left for this reader. Raise what made it fail."""
        untouched = True  # nothing of the range that the reader has now was read
        try:
            more = await reader.take()
            with session.rows(encoder) as rows:
                while more:
                    self._start(session, rows, reader.number)
                    untouched = False
                    if await _read_range(rows, reader):
                        more = await reader.take()
                    else:
                        untouched = True
                        await _discard(rows)
        except BaseException as error:
            # Another reader may read what this one could not. An error of the query would come again.
            reader.fail(error, give_back=untouched or not _of_query(error))
            raise

    def _start(self, session: Session, rows: Rows, number: int) -> None:
        blocks = self.strategy.ranges[number] if self.strategy.ranges else None
        statement = select_statement(self.plan, blocks)
        rows.start(session.bound(statement.text, statement.values), self.strategy.chunk_rows)


def _of_query(error: BaseException) -> bool:
    return isinstance(error, ExportError) and error.of_query


async def _read_range(rows: Rows, reader: RangeReader) -> bool:
    """Read the range of the reader, whose statement runs, to its end.

    Return False if the reader has exchanged it for another range. The statement of the old range then still runs.
    """
    # The first row of the file is handed over at once.
    chunk = await rows.read(FILE_CHUNK_BYTES if reader.number else 1)
    while rows.running:
        if not await reader.put(chunk):
            return False
        chunk = await rows.read(FILE_CHUNK_BYTES)
    reader.end(chunk)
    return True


async def _discard(rows: Rows) -> None:
    """Read the rest of the running statement and drop it: only then can the connection take another one."""
    while rows.running:
        await rows.read(FILE_CHUNK_BYTES)


async def _fetched(session: Session, plan: ExportPlan, encoder: Encoder) -> AsyncGenerator[Chunk, None]:
    """Yield one chunk for each FETCH. PostgreSQL runs the next FETCH while a batch is encoded and sent."""
    await _declare(session, plan)
    asked = FIRST_ROWS
    fetching = asyncio.create_task(session.fetch(asked))
    try:
        while True:
            batch = await fetching
            last = batch.count < asked
            if not last:
                asked = next_rows(batch, plan.fetch_rows)
                fetching = asyncio.create_task(session.fetch(asked))
                await asyncio.sleep(0)  # lets the task send its statement before this one encodes
            yield Chunk(encoder.encode(batch), batch.count)
            if last:
                return
    finally:
        await cancel_and_wait(fetching)


async def fetch_rows(session: Session, plan: ExportPlan) -> AsyncGenerator[Sequence[bytes | None], None]:
    """Yield the rows of the plan as PostgreSQL's text output, None for NULL, without encoding them.

    Fetch one row at a time, since each may be large. Raise ExportError.
    """
    await _declare(session, plan)
    while (batch := await session.fetch(1)).count:
        yield batch.rows()[0]


async def _declare(session: Session, plan: ExportPlan) -> None:
    statement = select_statement(plan)
    await session.declare(statement.text, statement.values, timezone=plan.timezone)


def next_rows(batch: Batch, most: int) -> int:
    """Return how many rows to ask for after this batch, so that the next one holds BATCH_BYTES; at most `most`.

    batch: not empty.
    """
    fitting = BATCH_BYTES * batch.count // batch.memory
    return max(1, min(fitting, batch.count * GROWTH, most))
