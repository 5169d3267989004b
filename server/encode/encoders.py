"""Rows → the bytes of their lines, as `COPY … (FORMAT csv)` writes them, in the dialect of the request.

Two encoders write the same bytes from PostgreSQL's DataRow messages: the native one, which also reads them from the
socket (`_encode.pyx`), and the pure-Python one, which gets them one by one. Values are PostgreSQL's own text output and
are never interpreted. Does no I/O, but for the native encoder's `read`. Must not import the driver.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.encode.kinds import ALWAYS, GUARD, JSON, LONG, PLAIN, PROTECT, SCAN, TEXT, for_spreadsheets, kinds_for
from server.encode.large_values import LargeValue
from server.postgres.messages import ProtocolError, columns
from server.postgres.reader import RowReader
from server.query.dialect import Dialect
from server.query.spreadsheets import write_number, write_text

_LENGTH = struct.Struct("!i").unpack_from

try:
    import server.encode._encode as _encode  # noqa: PLR0402
except ImportError:  # it was installed without a compiler; an event says that the pure-Python encoder is in use
    _encode = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Encoders:
    """The encoder of this process. Made once, by `choose_encoders`. native: whether it is the native encoder."""

    native: bool
    _python_reader: Callable[[PureEncoder], RowReader]

    def reader(self, dialect: Dialect, format: str) -> RowReader:
        """Return what reads and encodes the rows of one connection, for one export."""
        kind_of = kinds_for(dialect, format)
        if self.native:
            return native_encoder(dialect, kind_of)
        return self._python_reader(PureEncoder(dialect, kind_of))


def choose_encoders(
    openssl: Mapping[str, int], python_reader: Callable[[PureEncoder], RowReader], *, pure_python: bool
) -> Encoders:
    """Choose the encoder of this process.

    openssl: the addresses of the functions with which the native encoder reads TLS. python_reader: makes a reader that
    passes its rows to the pure-Python encoder. pure_python: whether the settings forbid the native encoder.
    """
    if _encode is not None:
        _encode.bind(openssl)
    return Encoders(_encode is not None and not pure_python, python_reader)


def native_encoder(dialect: Dialect, kind_of: Callable[[int], int]) -> RowReader:
    """Return a native encoder. Only if it is built."""

    def kinds_of(description: bytes) -> bytes | None:
        try:
            return bytes([kind_of(oid) for _, oid in columns(description)])
        except ProtocolError:
            return None

    return _encode.Encoder(dialect.delimiter, dialect.quote, dialect.null, dialect.eol, kinds_of)


class PureEncoder:
    """The encoder in Python, for machines without a compiler."""

    def __init__(self, dialect: Dialect, kind_of: Callable[[int], int]) -> None:
        self._dialect = dialect
        self._kind_of = kind_of
        special = b"[" + re.escape(dialect.delimiter + dialect.quote) + b"\r\n]"
        self._needs_quotes = re.compile(special).search
        self._kinds: list[int] = []

    def describe(self, types: Sequence[int]) -> None:
        """Take the type OID of each column of the rows that follow."""
        self._kinds = [self._kind_of(oid) for oid in types]

    def line(self, row: bytes) -> bytes:
        """Return the line of a row. row: the body of the DataRow message. Raise ProtocolError if it is malformed."""
        kinds, null, search = self._kinds, self._dialect.null, self._needs_quotes
        parts = []
        at = 2
        # Parses the row as `messages.fields` does. A list of values between the two would cost a fifth more.
        try:
            if int.from_bytes(row[:2], "big") != len(kinds):
                raise ProtocolError("a DataRow with another number of columns")
            for kind in kinds:
                (length,) = _LENGTH(row, at)
                start = at + 4
                at = start + length
                value = row[start:at]
                # Most values are written as they are.
                if (length > 0 and value != null) and (
                    kind == PLAIN or (kind == SCAN and value != rb"\." and search(value) is None)
                ):
                    parts.append(value)
                elif length >= 0:
                    parts.append(self._field(value, kind, len(kinds) == 1))
                elif length == -1:
                    parts.append(null)
                    at = start
                else:
                    raise ProtocolError("a value of negative length")
        except struct.error:
            raise ProtocolError("a DataRow that ends too early") from None
        if at != len(row):
            raise ProtocolError("a DataRow whose values do not fill it")
        return self._dialect.delimiter.join(parts) + self._dialect.eol

    def in_parts(self) -> LineInParts:
        """Return what writes one row value by value."""
        return LineInParts(self)

    def lines(self, rows: Iterable[Sequence[bytes | None]], kinds: Sequence[int]) -> bytes:
        """Return the rows as lines. rows: the fields of each, None for NULL. kinds: one for each column."""
        alone = len(kinds) == 1
        field = self._field
        join = self._dialect.delimiter.join
        lines = [join([field(value, kind, alone) for value, kind in zip(row, kinds, strict=True)]) for row in rows]
        lines.append(b"")
        return self._dialect.eol.join(lines)

    def _field(self, value: bytes | None, kind: int, alone: bool) -> bytes:
        if value is None:
            return self._dialect.null
        quote = self._dialect.quote
        if kind & (GUARD | PROTECT):
            value = write_text(value, guard=bool(kind & GUARD), protect=bool(kind & PROTECT))
        elif kind & LONG:
            value = write_number(value)
        if value == self._dialect.null:  # a value that equals the bytes for NULL is quoted
            return quote + value + quote
        if kind == PLAIN:
            return value
        if kind & JSON:
            return value.replace(b"\n", b" ").replace(b"\r", b" ")
        # COPY quotes a lone \. so that older servers do not read it as the end of the data.
        if kind & ALWAYS or self._needs_quotes(value) or (alone and value == rb"\."):
            return quote + value.replace(quote, quote * 2) + quote
        return value


class LineInParts:
    """A line that is written while its row arrives: a `large_row.LineWriter`. columns: the number of its values."""

    def __init__(self, encoder: PureEncoder) -> None:
        self._encoder = encoder
        self._kinds = iter(encoder._kinds)
        self._delimiter = b""
        self.columns = len(encoder._kinds)

    def value(self, value: bytes | None) -> bytes:
        """Return the bytes of the next value, which is whole."""
        encoder = self._encoder
        return self._next() + encoder._field(value, next(self._kinds), self.columns == 1)

    def large_value(self, length: int) -> LargeValue:
        """Return what writes the next value, of this length. It needs more than `LONGEST_NULL` bytes."""
        return LargeValue(self._encoder._dialect, next(self._kinds), self._next())

    def end(self) -> bytes:
        """Return the end of the line."""
        return self._encoder._dialect.eol

    def _next(self) -> bytes:
        delimiter, self._delimiter = self._delimiter, self._encoder._dialect.delimiter
        return delimiter


def file_start(names: Sequence[str], dialect: Dialect, format: str) -> bytes:
    """Return the bytes before the first row: the byte order mark and the header, if the dialect has them."""
    if format == "ndjson":
        return b""
    start = "\ufeff".encode() if dialect.bom else b""
    if dialect.header:
        kind = SCAN | for_spreadsheets(dialect, TEXT, text=True)
        encoder = PureEncoder(dialect, lambda oid: kind)
        start += encoder.lines([[name.encode() for name in names]], [kind] * len(names))
    return start
