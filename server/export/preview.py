"""A request → the first rows of its export, with long values shortened, and an estimate of the number of rows.

Opens the export as a download does (`pipeline.py`). Knows no HTTP and no page.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from server.errors import QueryTimeout
from server.export.engine import Engine
from server.export.pipeline import open_export
from server.postgres.session import Session
from server.query.plan import PREVIEW_ROWS, OutputColumn, preview_of
from server.query.request import ExportRequest
from server.query.sql import select_statement

# Seconds. Nobody waits longer for twenty rows.
PREVIEW_TIMEOUT = 5.0
# Characters of a value in a preview. A longer value ends in an ellipsis.
PREVIEW_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Preview:
    """The first rows of an export.

    rows: the values as text, None for NULL. estimated_rows: of the whole export, by PostgreSQL's planner; None if no
    estimate was requested. row_bytes: the average length of these rows as lines of the file; 0 without rows.
    """

    columns: tuple[OutputColumn, ...]
    rows: list[list[str | None]]
    estimated_rows: int | None
    row_bytes: float


async def first_rows(
    engine: Engine, wanted: ExportRequest, *, estimate: bool = False, seconds: float | None = None
) -> Preview:
    """Return the preview of this request.

    estimate: ask PostgreSQL how many rows the export has. seconds: the time limit, PREVIEW_TIMEOUT by default. Raise
    QueryTimeout at the time limit, and ExportError as the export itself would.
    """
    lengths: list[int] = []
    seconds = PREVIEW_TIMEOUT if seconds is None else seconds
    try:
        async with asyncio.timeout(seconds), open_export(engine, wanted) as export:
            estimated = (await export.explained()).rows if estimate else None
            plan = preview_of(export.plan)
            statement = select_statement(plan)
            await export.session.declare(statement.text, statement.values, timezone=plan.timezone)
            rows = [row async for row in _rows(export.session, lengths)]
    except TimeoutError:
        raise QueryTimeout(
            f"There was no preview within {seconds:g} seconds.",
            hint="The export itself may take longer. Filters and sort keys on indexed columns are quicker.",
        ) from None
    return Preview(plan.columns, rows, estimated, sum(lengths) / len(lengths) if lengths else 0.0)


async def _rows(session: Session, lengths: list[int]) -> AsyncIterator[list[str | None]]:
    """Yield the rows with long values shortened. Fetch one at a time, since each may be large.

    lengths: gets the length of each row as a line of the file, in bytes.
    """
    for _ in range(PREVIEW_ROWS):
        batch = await session.fetch(1)
        if not batch.count:
            return
        row = batch.rows()[0]
        lengths.append(sum(len(value or b"") for value in row) + max(len(row), 1))
        yield [None if value is None else _shown(value) for value in row]


def _shown(value: bytes) -> str:
    text = value[: 4 * PREVIEW_CHARACTERS].decode(errors="replace")
    return text if len(text) <= PREVIEW_CHARACTERS else text[:PREVIEW_CHARACTERS] + "…"
