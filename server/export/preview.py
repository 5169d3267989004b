"""A request → the first rows of its export, with long values shortened, and the number of its rows as far as known.

Opens the export as a download does (`pipeline.py`). The values and lines are those of the file: the pure-Python encoder
writes them. Knows no HTTP and no page.
"""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable
from dataclasses import dataclass, replace

from server.encode.encoders import PureEncoder, file_start
from server.encode.kinds import ALWAYS, JSON, PLAIN, SCAN, kinds_for
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
# The share of the time that is left which a preview waits for a connection and for a lock, so that the answer names
# what it has waited for.
WAIT_SHARE = 0.8
# Characters of a value or a line in a preview. A longer one ends in an ellipsis.
PREVIEW_CHARACTERS = 1000
# Characters of a row, all its values together. With more columns than fit, each value gets an equal share of them.
ROW_CHARACTERS = 50_000
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
    default. Raise QueryTimeout at the time limit, RelationLocked and ServerBusy before it, and otherwise ExportError as
    the export itself would.
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
    wait = WAIT_SHARE * max(deadline - asyncio.get_running_loop().time(), 0.01)
    async with open_export(engine, wanted, preview_wait=wait, told=estimate) as export:
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
        self._characters = min(PREVIEW_CHARACTERS, ROW_CHARACTERS // max(len(plan.columns), 1))
        # All that a value needs to be shown and to be seen as too long: UTF-8 has at most four bytes a character.
        self._most_bytes = 4 * self._characters + 4
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
        length = sum(len(value) for value in values if value is not None)
        most = self._most_bytes
        self._add([value if value is None or len(value) <= most else value[:most] for value in values], length)
        return b""

    def in_parts(self) -> ShownLine:
        return ShownLine(len(self._kinds), self._most_bytes, self._add)

    def _add(self, values: list[bytes | None], length: int) -> None:
        """Add a row. values: or their beginnings. length: of all values together."""
        self.lengths.append(length + max(len(values), 1))
        self.rows.append(self._as_read(values))
        self.lines.append(self._as_written(values))

    def _as_read(self, values: list[bytes | None]) -> list[str | None]:
        """Return the values as a reader of the file gets them."""
        if not self._changes:
            return [None if value is None else self._shortened(value) for value in values]
        line = self._encoder.lines([values], self._kinds)
        if self._kinds[0] & JSON:
            return [_shortened(line.removesuffix(self._dialect.eol))]
        read = _read(line, self._dialect)
        return [
            None if value is None else self._shortened(text.encode()) for value, text in zip(values, read, strict=True)
        ]

    def _shortened(self, value: bytes) -> str:
        return _shortened(value, self._characters)

    def _as_written(self, values: list[bytes | None]) -> str:
        """Return the beginning of the line. Of a row of many values, only the first ones are encoded."""
        needed = used = 0
        for value in values:
            if used >= 4 * PREVIEW_CHARACTERS + 4 or needed >= PREVIEW_CHARACTERS:
                break
            used += 1 if value is None else len(value) + 1
            needed += 1
        line = self._encoder.lines([values[:needed]], self._kinds[:needed]).removesuffix(self._dialect.eol)
        return _shortened(line if needed == len(values) else line + self._dialect.delimiter * PREVIEW_CHARACTERS)


class ShownLine:
    """A `large_row.LineWriter` that keeps the beginnings of the values."""

    def __init__(self, columns: int, most: int, add: Callable[[list[bytes | None], int], None]) -> None:
        """most: bytes of a value. add: takes the values and the length of the whole ones together."""
        self.columns = columns
        self._most = most
        self._add = add
        self._values: list[bytes | Beginning | None] = []
        self._length = 0

    def value(self, value: bytes | None) -> bytes:
        self._length += len(value or b"")
        self._values.append(value if value is None else value[: self._most])
        return b""

    def large_value(self, length: int) -> Beginning:
        self._length += length
        beginning = Beginning(self._most)
        self._values.append(beginning)
        return beginning

    def end(self) -> bytes:
        self._add([value.data if isinstance(value, Beginning) else value for value in self._values], self._length)
        return b""


class Beginning:
    """A `large_row.ValueWriter` that keeps the first bytes of a value. data: these bytes."""

    held_bytes = 0

    def __init__(self, most: int) -> None:
        self.data = b""
        self._most = most

    def add(self, part: bytes, *, may_hold: bool) -> bool:
        self.data += part[: self._most - len(self.data)]
        return True

    def end(self) -> None:
        pass

    def pass_over(self) -> None:
        pass

    def take(self) -> bytes | None:
        return None


def _read(line: bytes, dialect: Dialect) -> list[str]:
    """Return the values of a line of the file that has any."""
    text = line.removesuffix(dialect.eol).decode(errors="replace")
    reader = csv.reader([text], delimiter=dialect.delimiter.decode(), quotechar=dialect.quote.decode())
    return next(reader) or [""]


def _shortened(value: bytes, most: int = PREVIEW_CHARACTERS) -> str:
    text = value.decode(errors="replace")
    return text if len(text) <= most else text[:most] + "…"
