"""A request → the first rows of its export, with long values shortened, and the number of its rows as far as known.

Opens the export as a download does (`pipeline.py`). The values and lines are those of the file: the pure-Python encoder
writes them. Knows no HTTP and no page.
"""

from __future__ import annotations

import asyncio
import csv
from dataclasses import dataclass, replace

from server.encode.encoders import ALWAYS, JSON, PLAIN, SCAN, PureEncoder, file_start, kinds_for
from server.errors import QueryTimeout
from server.export.engine import Engine
from server.export.pipeline import open_export, with_retries
from server.postgres.messages import fields
from server.query.columns import OutputColumn
from server.query.dialect import Dialect
from server.query.plan import PREVIEW_ROWS, ExportPlan
from server.query.request import ExportRequest

# Seconds. Nobody waits longer for twenty rows.
PREVIEW_TIMEOUT = 5.0
# The share of the time that is left which a preview waits for a lock, so that the answer names the lock.
LOCK_SHARE = 0.8
# Characters of a value or a line in a preview. A longer one ends in an ellipsis.
PREVIEW_CHARACTERS = 1000
# All that a value needs to be shown and to be seen as too long: UTF-8 has at most four bytes a character.
_MOST_BYTES = 4 * PREVIEW_CHARACTERS + 4
# Kinds of columns whose values a reader of the file gets as they are in the database.
_UNCHANGED = {PLAIN, SCAN, ALWAYS}


@dataclass(frozen=True, slots=True)
class Preview:
    """The first rows of an export.

    names: of the columns, as the file's header has them. rows: the values as a reader of the file gets them, None for
    NULL; for ndjson, each row is one value, its line. lines: the first lines of the file as they stand in it.
    row_count: of the whole export, if these are all of its rows, else None. estimated_rows: the same by PostgreSQL's
    planner, but no fewer than these rows; None if none was requested, or the user must not be told. row_bytes: the
    average length of these rows as lines of the file; 0 without rows.
    """

    columns: tuple[OutputColumn, ...]
    names: tuple[str, ...]
    rows: list[list[str | None]]
    lines: list[str]
    row_count: int | None
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
            f"There was no preview within {seconds:g} second{'' if seconds == 1 else 's'}.",
            hint="The export itself may take longer. Filters and sort keys on indexed columns are quicker.",
        ) from None


async def _attempt(engine: Engine, wanted: ExportRequest, estimate: bool, deadline: float) -> Preview:
    """deadline: when the preview has to be there, in the event loop's time."""
    lock_timeout = LOCK_SHARE * max(deadline - asyncio.get_running_loop().time(), 0.01)
    async with open_export(engine, wanted, lock_timeout=lock_timeout, told=estimate) as export:
        plan = export.plan
        estimated = await export.estimated_rows() if estimate else None
        shown = ShownRows(plan)
        await export.first_rows(shown)
    lengths = shown.lengths
    return Preview(
        plan.columns,
        shown.names,
        shown.rows,
        shown.lines,
        row_count(len(shown.rows), plan.limit),
        None if estimated is None else max(estimated, len(shown.rows)),
        sum(lengths) / len(lengths) if lengths else 0.0,
    )


def row_count(read: int, limit: int | None) -> int | None:
    """Return how many rows the export has, or None if there may be more than those that the preview has read.

    limit: of the export.
    """
    whole = read < PREVIEW_ROWS or (limit is not None and limit <= PREVIEW_ROWS)
    return read if whole else None


class ShownRows:
    """A `portal.RowWriter` that keeps the rows for the preview and writes no file.

    names, rows, lines: as in Preview. lengths: of each row as a line of the file, in bytes.
    """

    def __init__(self, plan: ExportPlan) -> None:
        self.rows: list[list[str | None]] = []
        self.lines: list[str] = []
        self.lengths: list[int] = []
        self._dialect = plan.dialect
        self._kind_of = kinds_for(plan.dialect, plan.format)
        self._kinds: list[int] = []
        self._changes = False
        self._encoder = PureEncoder(plan.dialect, self._kind_of)
        names = [output.name for output in plan.columns]
        header = file_start(names, replace(plan.dialect, header=True, bom=False), "csv")
        self.names = tuple(_read(header, plan.dialect)) if names else ()
        if plan.dialect.header and plan.format != "ndjson":
            self.lines.append(_shortened(header.removesuffix(plan.dialect.eol)))

    def describe(self, types: list[int]) -> None:
        self._kinds = [self._kind_of(oid) for oid in types]
        self._changes = not set(self._kinds) <= _UNCHANGED

    def line(self, row: bytes) -> bytes:
        values = fields(row, len(self._kinds))
        self.lengths.append(sum(len(value) for value in values if value is not None) + max(len(values), 1))
        cut = [value if value is None or len(value) <= _MOST_BYTES else value[:_MOST_BYTES] for value in values]
        self.rows.append(self._as_read(cut))
        self.lines.append(self._as_written(cut))
        return b""

    def _as_read(self, values: list[bytes | None]) -> list[str | None]:
        """Return the values as a reader of the file gets them."""
        if not self._changes:
            return [None if value is None else _shortened(value) for value in values]
        line = self._encoder.lines([values], self._kinds)
        if self._kinds[0] & JSON:
            return [_shortened(line.removesuffix(self._dialect.eol))]
        read = _read(line, self._dialect)
        return [None if value is None else _shortened(text.encode()) for value, text in zip(values, read, strict=True)]

    def _as_written(self, values: list[bytes | None]) -> str:
        """Return the beginning of the line. Of a row of many values, only the first ones are encoded."""
        needed = used = 0
        for value in values:
            if used >= _MOST_BYTES or needed >= PREVIEW_CHARACTERS:
                break
            used += 1 if value is None else len(value) + 1
            needed += 1
        line = self._encoder.lines([values[:needed]], self._kinds[:needed]).removesuffix(self._dialect.eol)
        return _shortened(line if needed == len(values) else line + self._dialect.delimiter * PREVIEW_CHARACTERS)


def _read(line: bytes, dialect: Dialect) -> list[str]:
    """Return the values of a line of the file that has any."""
    text = line.removesuffix(dialect.eol).decode(errors="replace")
    reader = csv.reader([text], delimiter=dialect.delimiter.decode(), quotechar=dialect.quote.decode())
    return next(reader) or [""]


def _shortened(value: bytes) -> str:
    text = value.decode(errors="replace")
    return text if len(text) <= PREVIEW_CHARACTERS else text[:PREVIEW_CHARACTERS] + "…"
