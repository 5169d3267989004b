"""Rows → the bytes of their lines, as `COPY … (FORMAT csv)` writes them, in the dialect of the request.

Two encoders write the same bytes: the native one reads results of libpq in place (`_encode.pyx`), the pure-Python one
takes the fields as bytes. Values are PostgreSQL's own text output and are never interpreted. Does no I/O, but for
`NativeEncoder.read`. Must not import the driver: it is given the driver's libpq.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.query.dialect import FORMULA_STARTS, Dialect

try:
    import server.encode._encode as _encode  # noqa: PLR0402
except ImportError:  # it was installed without a compiler; an event says that the pure-Python encoder is in use
    _encode = None  # type: ignore[assignment]

# How the values of a column are written. `_encode.pyx` has the same numbers and says what each means.
PLAIN, SCAN, ALWAYS, GUARD, JSON = 0, 1, 2, 4, 8

# Types by OID (PostgreSQL's pg_type.dat). The output of the plain ones holds no delimiter, quote, CR or LF and is never
# empty, given the session's fixed DateStyle, IntervalStyle and bytea_output.
# bool int8 int2 int4 oid float4 float8 date time timestamp timestamptz interval timetz numeric uuid
_PLAIN_VALUES = frozenset((16, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1186, 1266, 1700, 2950))
# bytea
_PLAIN_TEXT = frozenset((17,))
# money: a number whose output may hold commas
_OTHER_VALUES = frozenset((790,))

LIBPQ_FUNCTIONS = (
    *("PQntuples", "PQnfields", "PQftype", "PQgetvalue", "PQgetlength", "PQgetisnull", "PQresultStatus"),
    *("PQsocket", "PQisBusy", "PQconsumeInput", "PQflush", "PQsslInUse", "PQgetResult", "PQclear"),
)


class Batch(Protocol):
    """The rows of one FETCH. pgresult: the address of the PGresult, valid until the FETCH after the next one.

    types: the type OID of each column. rows: the fields of each row as PostgreSQL's text output, None for NULL.
    """

    @property
    def pgresult(self) -> int: ...

    @property
    def types(self) -> Sequence[int]: ...

    def rows(self) -> Sequence[Sequence[bytes | None]]: ...


class Encoder(Protocol):
    """Encodes whole batches. encode: return all rows of the batch as lines."""

    def encode(self, batch: Batch) -> bytes: ...


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
        # Only text can be a formula: a negative number stays as it is.
        return kind | GUARD if dialect.guard and text and kind != PLAIN else kind

    return kind_of


def bind_libpq(library: ctypes.CDLL) -> bool:
    """Give the native encoder the functions of the libpq that makes the results.

    Return whether the native encoder can be used. It cannot if it is not built or if the library hides its symbols.
    """
    if _encode is None:
        return False
    try:
        addresses = {name: ctypes.cast(library[name], ctypes.c_void_p).value for name in LIBPQ_FUNCTIONS}
    except AttributeError:
        return False
    _encode.bind(addresses)
    return True


@dataclass(frozen=True, slots=True)
class Encoders:
    """The encoder of this process, which also determines how rows are read. Made once, by `choose_encoders`.

    native: whether it is the native encoder. streams: whether it reads rows as they arrive; otherwise it encodes the
    batches of a cursor.
    """

    native: bool
    streams: bool

    def for_batches(self, dialect: Dialect, format: str) -> Encoder:
        """Return an encoder of a cursor's batches, for one export."""
        return make_encoder(dialect, format, native=self.native)

    def for_streams(self, dialect: Dialect, format: str) -> NativeEncoder:
        """Return an encoder that reads rows itself, for one export. Only if `streams` is true."""
        return NativeEncoder(dialect, kinds_for(dialect, format))


def choose_encoders(library: ctypes.CDLL, *, chunked: bool, pure_python: bool) -> Encoders:
    """Choose the encoder of this process.

    library: the driver's libpq. chunked: whether it returns rows in chunks (libpq 17). pure_python: whether the
    settings forbid the native encoder.
    """
    native = bind_libpq(library) and not pure_python
    return Encoders(native, native and chunked)


def make_encoder(dialect: Dialect, format: str, *, native: bool) -> Encoder:
    """Return an encoder for one export. native: only if `bind_libpq` has returned true."""
    kind_of = kinds_for(dialect, format)
    return NativeEncoder(dialect, kind_of) if native else PureEncoder(dialect, kind_of)


class NativeEncoder:
    """The Cython encoder, for batches or for rows as they arrive. Only one thread may use it at a time."""

    def __init__(self, dialect: Dialect, kind_of: Callable[[int], int]) -> None:
        self._dialect = dialect
        self._kind_of = kind_of
        self._encoder = _encode.Encoder(dialect.delimiter, dialect.quote, dialect.null, dialect.eol, kind_of)
        # Both are called by the thread that reads a running statement: postgres.rows.RowReader.
        self.read = self._encoder.read
        self.failure = self._encoder.failure

    def encode(self, batch: Batch) -> bytes:
        """Return all rows of the batch as lines. Read the fields in libpq's memory."""
        lines: bytes = self._encoder.encode(batch.pgresult)
        return lines

    def copy(self) -> NativeEncoder:
        """Return an encoder that writes the same, for another thread."""
        return NativeEncoder(self._dialect, self._kind_of)


class PureEncoder:
    """The encoder in Python, for machines without a compiler."""

    def __init__(self, dialect: Dialect, kind_of: Callable[[int], int]) -> None:
        self._dialect = dialect
        self._kind_of = kind_of
        special = b"[" + re.escape(dialect.delimiter + dialect.quote) + b"\r\n]"
        self._needs_quotes = re.compile(special).search

    def encode(self, batch: Batch) -> bytes:
        """Return all rows of the batch as lines."""
        return self.lines(batch.rows(), [self._kind_of(oid) for oid in batch.types])

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
        if kind & GUARD and value.startswith(FORMULA_STARTS):
            value = b"'" + value
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
        kind = SCAN | GUARD if dialect.guard else SCAN
        encoder = PureEncoder(dialect, lambda oid: kind)
        start += encoder.lines([[name.encode() for name in names]], [kind] * len(names))
    return start
