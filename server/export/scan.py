"""ExportPlan → the chunks of the file, in order, while the relation is being read.

Two ways, the same bytes. Streamed: SELECTs whose rows are encoded in threads as they arrive, by one reader or by
several under one snapshot (`strategy.py` says which). Fetched: a cursor's batches, for the pure-Python encoder and
for a driver with a libpq before 17. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import structlog

from server import errors
from server.chunk import Chunk
from server.encode.encoders import Encoder, NativeEncoder, file_start
from server.export.engine import Engine
from server.export.ranges import Ranges
from server.export.strategy import TABLES, Candidates, Limits, Strategy, candidate_tables, make_strategy
from server.postgres.database import Database
from server.postgres.explained import Explained
from server.postgres.session import Batch, Session
from server.query.plan import ExportPlan
from server.query.sql import lock_statement, select_statement

log = structlog.stdlib.get_logger("sluice.scan")

# Bytes of a chunk: with more the caches miss and the first of them come later, with less the hand-over shows.
# Measured in docs/performance.md.
CHUNK_BYTES = 256 << 10

# Rows of the first FETCH: one, since it may hold a gigabyte, and since the first byte then comes at once.
FIRST_ROWS = 1
# A batch asks for at most this many times the rows of the one before.
GROWTH = 8
# Bytes that a fetched batch should hold in libpq.
BATCH_BYTES = 512 << 10


async def choose_strategy(engine: Engine, session: Session, plan: ExportPlan, explained: Explained) -> Strategy:
    """Return how to read the plan. explained: of its whole query, whose relations are locked by then."""
    if engine.encoders.streams:
        candidates = candidate_tables(plan, explained, session.server_version)
    else:
        candidates = Candidates(refusal="fetched from a cursor")
    facts: list[dict[str, Any]] = []
    if candidates.tables:
        schemas, names = (list(each) for each in zip(*candidates.tables, strict=True))
        facts = await session.query(TABLES, {"schemas": schemas, "names": names, "relation": plan.relation.oid})
    statement = select_statement(plan)
    length = len(session.bound(statement.text, statement.values))
    return make_strategy(plan, explained, candidates, facts, Limits(engine.database.most_readers, length))


async def scan(engine: Engine, session: Session, plan: ExportPlan, strategy: Strategy) -> AsyncGenerator[Chunk, None]:
    """Yield the file in chunks, header first. There is at least one; the first holds the header and the first row."""
    start = file_start([column.name for column in plan.columns], plan.dialect, plan.format)
    if engine.encoders.streams:
        encoder = engine.encoders.for_streams(plan.dialect, plan.format)
        chunks = _streamed(engine.database, session, plan, strategy, encoder)
    else:
        chunks = _fetched(session, plan, engine.encoders.for_batches(plan.dialect, plan.format))
    begun = False
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if begun:
                yield chunk
            elif chunk.rows:  # until then an error can still be a status
                begun = True
                yield chunk._replace(data=start + chunk.data)
    if not begun:
        yield Chunk(start, 0)


async def _streamed(
    database: Database, session: Session, plan: ExportPlan, strategy: Strategy, encoder: NativeEncoder
) -> AsyncGenerator[Chunk, None]:
    by_blocks = bool(strategy.ranges)
    await session.settle(streaming=True, by_blocks=by_blocks)
    with database.spare_readers(strategy.readers - 1) as spare:
        snapshot, settings = await session.export_snapshot() if spare else ("", {})
        ranges = Ranges(max(1, len(strategy.ranges)), ahead=spare + 2)

        async def read_beside() -> None:
            try:
                async with database.reader_session(snapshot) as beside:
                    await beside.lock(lock_statement(strategy.ranges.tables), settings)
                    await beside.settle(streaming=True, by_blocks=by_blocks)
                    await _read_ranges(beside, plan, strategy, encoder.another(), ranges)
            except errors.ExportError as error:
                # Those that have taken a range have told it so: the file ends there.
                log.info("a reader ended early", reason=error.detail)

        tasks = [asyncio.create_task(_read_ranges(session, plan, strategy, encoder, ranges))]
        tasks += [asyncio.create_task(read_beside()) for _ in range(spare)]
        try:
            async with contextlib.aclosing(ranges.chunks()) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _read_ranges(
    session: Session, plan: ExportPlan, strategy: Strategy, encoder: NativeEncoder, ranges: Ranges
) -> None:
    """Take ranges and read them until there are none. A failure is told to the range that it befell."""
    taken = await ranges.take()
    try:
        with session.rows(encoder) as rows:

            def start(number: int) -> None:
                statement = select_statement(plan, strategy.ranges[number] if strategy.ranges else None)
                rows.start(session.bound(statement.text, statement.values), strategy.chunk_rows)

            while taken is not None:
                if not rows.running:
                    start(taken.number)
                chunk = await rows.read(CHUNK_BYTES if taken.number else 1)
                while rows.running:
                    await taken.put(chunk)
                    chunk = await rows.read(CHUNK_BYTES)
                # PostgreSQL goes on with the next range while the end of this one is handed over.
                following = ranges.take_now()
                if following is not None:
                    start(following.number)
                await taken.put(chunk)
                taken.end()
                taken = following or await ranges.take()
    except BaseException as error:
        if taken is not None:
            taken.end(error)
        raise


async def _fetched(session: Session, plan: ExportPlan, encoder: Encoder) -> AsyncGenerator[Chunk, None]:
    statement = select_statement(plan)
    await session.declare(statement.text, statement.values, timezone=plan.timezone)
    asked = FIRST_ROWS
    coming = asyncio.create_task(session.fetch(asked))
    try:
        while True:
            batch = await coming
            last = batch.count < asked
            if not last:
                asked = next_rows(batch, plan.fetch_rows)
                coming = asyncio.create_task(session.fetch(asked))
                await asyncio.sleep(0)  # lets the task send its statement before this one is busy encoding
            yield Chunk(encoder.encode(batch), batch.count)
            if last:
                return
    finally:
        coming.cancel()
        await asyncio.wait([coming])
        if not coming.cancelled():
            coming.exception()  # seen here, since nobody else will ask for it


def next_rows(batch: Batch, most: int) -> int:
    """How many rows to ask for after this batch, which is not empty, so that the next is BATCH_BYTES."""
    fitting = BATCH_BYTES * batch.count // batch.memory
    return max(1, min(fitting, batch.count * GROWTH, most))
