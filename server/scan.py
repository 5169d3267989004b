"""ExportPlan → the chunks of the file, in order, while the relation is being read.

A chunk is the encoded rows of one batch. The next FETCH is already on its way while a batch is encoded and
written, and never more than that one: a consumer that does not ask keeps the server waiting. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from server.encode import Encoder, file_start
from server.plan import ExportPlan
from server.session import Batch, Session
from server.sql import select_statement

# Rows of the first FETCH: one, since it may hold a gigabyte, and since the first byte then comes at once.
FIRST_ROWS = 1
# A batch asks for at most this many times the rows of the one before.
GROWTH = 8
# Bytes that a batch should hold in libpq: with more the caches miss, with less the round trips show.
# Measured in docs/performance.md.
BATCH_BYTES = 512 << 10


class Chunk(NamedTuple):
    """Some bytes of the file, and how many rows they hold. done: the share of the relation read by then, if known."""

    data: bytes
    rows: int
    done: float | None = None


async def scan(session: Session, plan: ExportPlan, encoder: Encoder) -> AsyncGenerator[Chunk, None]:
    """The file, header first. At least one chunk; the first holds the header and the first row."""
    statement = select_statement(plan)
    await session.declare(statement.text, statement.values, timezone=plan.timezone)
    asked = FIRST_ROWS
    coming = asyncio.create_task(session.fetch(asked))
    start = file_start([column.name for column in plan.columns], plan.dialect, plan.format)
    try:
        while True:
            batch = await coming
            last = batch.count < asked
            if not last:
                asked = next_rows(batch, plan.fetch_rows)
                coming = asyncio.create_task(session.fetch(asked))
                await asyncio.sleep(0)  # lets the task send its statement before this one is busy encoding
            yield Chunk(start + encoder.encode(batch), batch.count)
            start = b""
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
