"""A request → the first rows of its export, with long values shortened, and an estimate of the number of rows.

Opens the export as a download does (`pipeline.py`). Knows no HTTP and no page.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from server.errors import QueryTimeout
from server.export.engine import Engine
from server.export.pipeline import open_export, with_retries
from server.postgres.messages import fields
from server.query.columns import OutputColumn
from server.query.request import ExportRequest

# Seconds. Nobody waits longer for twenty rows.
PREVIEW_TIMEOUT = 5.0
# The share of the time that is left which a preview waits for a lock, so that the answer names the lock.
LOCK_SHARE = 0.8
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

    estimate: ask PostgreSQL how many rows the export has. seconds: the time limit for all attempts, PREVIEW_TIMEOUT by
    default. Raise QueryTimeout at the time limit, RelationLocked before it, and ExportError as the export itself would.
    """
    seconds = PREVIEW_TIMEOUT if seconds is None else seconds
    try:
        async with asyncio.timeout(seconds):
            deadline = asyncio.get_running_loop().time() + seconds
            return await with_retries(lambda: _attempt(engine, wanted, estimate, deadline))
    except TimeoutError:
        raise QueryTimeout(
            f"There was no preview within {seconds:g} seconds.",
            hint="The export itself may take longer. Filters and sort keys on indexed columns are quicker.",
        ) from None


async def _attempt(engine: Engine, wanted: ExportRequest, estimate: bool, deadline: float) -> Preview:
    """deadline: when the preview has to be there, in the event loop's time."""
    shown = _ShownRows()
    lock_timeout = LOCK_SHARE * max(deadline - asyncio.get_running_loop().time(), 0.01)
    async with open_export(engine, wanted, lock_timeout=lock_timeout) as export:
        estimated = (await export.explained()).rows if estimate else None
        await export.first_rows(shown)
    lengths = shown.lengths
    return Preview(export.plan.columns, shown.rows, estimated, sum(lengths) / len(lengths) if lengths else 0.0)


class _ShownRows:
    """A `portal.RowWriter` that keeps the rows for the preview and writes no file.

    lengths: of each row as a line of the file, in bytes.
    """

    def __init__(self) -> None:
        self.rows: list[list[str | None]] = []
        self.lengths: list[int] = []
        self._columns = 0

    def describe(self, types: list[int]) -> None:
        self._columns = len(types)

    def line(self, row: bytes) -> bytes:
        values = fields(row, self._columns)
        self.lengths.append(sum(len(value or b"") for value in values) + max(len(values), 1))
        self.rows.append([None if value is None else _shown(value) for value in values])
        return b""


def _shown(value: bytes) -> str:
    text = value[: 4 * PREVIEW_CHARACTERS].decode(errors="replace")
    return text if len(text) <= PREVIEW_CHARACTERS else text[:PREVIEW_CHARACTERS] + "…"
