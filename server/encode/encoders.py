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

from server.postgres.messages import ProtocolError, columns
from server.postgres.reader import RowReader
from server.query.dialect import Dialect
from server.query.spreadsheets import write_number, write_text

_LENGTH = struct.Struct("!i").unpack_from

try:
    import server.encode._encode as _encode  # noqa: PLR0402
except ImportError:  # it was installed without a compiler; an event says that the pure-Python encoder is in use
    _encode = None  # type: ignore[assignment]

# How the values of a column are written. `_encode.pyx` has the same numbers and says what each means.
PLAIN, SCAN, ALWAYS, GUARD, JSON, PROTECT, LONG = 0, 1, 2, 4, 8, 16, 32

# Types by OID (PostgreSQL's pg_type.dat). The output of the plain ones holds no delimiter, quote, CR or LF and is never
# empty, given the session's fixed DateStyle, IntervalStyle and bytea_output.
# bool int8 int2 int4 oid float4 float8 date time timestamp timestamptz interval timetz numeric uuid
_PLAIN_VALUES = frozenset((16, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1186, 1266, 1700, 2950))
# bytea
_PLAIN_TEXT = frozenset((17,))
_TEXT = 25
# money: a number whose output may hold commas
_OTHER_VALUES = frozenset((790,))
# Text that holds nothing but numbers and times, in which a minus sign begins no formula: points and other shapes;
# arrays of the values above, such as {1,-2}; ranges and multiranges; int2vector, tid, oidvector.
_SHAPES = frozenset((600, 601, 602, 603, 604, 628, 718, 1017, 1018, 1019, 1020, 1027, 629, 719))
_ARRAYS_OF_VALUES = frozenset(
    (1000, 1016, 1005, 1007, 1028, 1021, 1022, 1182, 1183, 1115, 1185, 1187, 1270, 1231, 2951, 791)
)
_RANGES = frozenset((3904, 3906, 3908, 3910, 3912, 3926, 4451, 4532, 4533, 4534, 4535, 4536))
_ONLY_NUMBERS = _SHAPES | _ARRAYS_OF_VALUES | _RANGES | frozenset((22, 27, 30))
# int8, numeric: may have more digits than a spreadsheet keeps.
_LONG_NUMBERS = frozenset((20, 1700))


def kinds_for(dialect: Dialect, format: str) -> Callable[[int], int]:
    """Return a function from a type OID to the kind of a column of that type: how its values are written."""
    if format == "ndjson":
        return lambda oid: JSON

    def kind_of(oid: int) -> int:
        text = oid not in _PLAIN_VALUES and oid not in _OTHER_VALUES
        if dialect.quote_style == "all" or (dialect.quote_style == "strings" and text):
            kind = ALWAYS
        else:
            kind = PLAIN if oid in _PLAIN_VALUES or oid in _PLAIN_TEXT else SCAN
        return kind | _for_spreadsheets(dialect, oid, text=text and kind != PLAIN)

    return kind_of


def _for_spreadsheets(dialect: Dialect, oid: int, *, text: bool) -> int:
    """Return what is added to the kind of a column. text: whether its values are text that may need quotes."""
    if oid in _LONG_NUMBERS:
        return LONG if dialect.protect else 0
    if not text:
        return 0
    # Only text can be a formula: a negative number stays as it is.
    guard = dialect.guard and oid not in _ONLY_NUMBERS
    return (GUARD if guard else 0) | (PROTECT if dialect.protect else 0)


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


def file_start(names: Sequence[str], dialect: Dialect, format: str) -> bytes:
    """Return the bytes before the first row: the byte order mark and the header, if the dialect has them."""
    if format == "ndjson":
        return b""
    start = "\ufeff".encode() if dialect.bom else b""
    if dialect.header:
        kind = SCAN | _for_spreadsheets(dialect, _TEXT, text=True)
        encoder = PureEncoder(dialect, lambda oid: kind)
        start += encoder.lines([[name.encode() for name in names]], [kind] * len(names))
    return start
