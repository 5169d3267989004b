"""A batch of rows → the bytes of its lines, as `COPY … (FORMAT csv)` writes them under a dialect; no I/O.

Two encoders give the same bytes: the native one reads the PGresult in place (`server/_encode.pyx`), the
pure-Python one takes the fields as bytes. Values are PostgreSQL's own text output and are never interpreted.
Must not import the driver: it is handed libpq.
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
except ImportError:  # built where a compiler is at hand; a line in the log says which one serves
    _encode = None  # type: ignore[assignment]

# Kinds of columns; the same numbers in server/_encode.pyx.
PLAIN, SCAN, ALWAYS, GUARD, JSON = 0, 1, 2, 4, 8

# Types by OID (pg_type.dat). The text of the first holds no delimiter, quote, CR or LF and is never empty,
# under the session's fixed DateStyle, IntervalStyle and bytea_output:
# bool int8 int2 int4 oid float4 float8 date time timestamp timestamptz interval timetz numeric uuid,
_PLAIN_VALUES = frozenset((16, 20, 21, 23, 26, 700, 701, 1082, 1083, 1114, 1184, 1186, 1266, 1700, 2950))
# bytea,
_PLAIN_TEXT = frozenset((17,))
# money: a number that may hold commas.
_OTHER_VALUES = frozenset((790,))

LIBPQ_FUNCTIONS = (
    *("PQntuples", "PQnfields", "PQftype", "PQgetvalue", "PQgetlength", "PQgetisnull", "PQresultStatus"),
    *("PQsocket", "PQisBusy", "PQconsumeInput", "PQflush", "PQsslInUse", "PQgetResult", "PQclear"),
)


class Batch(Protocol):
    """The rows of one FETCH. pgresult: the address of the PGresult, valid until the next FETCH but one.

    types: the type OID of each column.
    """

    @property
    def pgresult(self) -> int: ...

    @property
    def types(self) -> Sequence[int]: ...

    def rows(self) -> Sequence[Sequence[bytes | None]]: ...


class Encoder(Protocol):
    """encode: all rows of the batch as lines."""

    def encode(self, batch: Batch) -> bytes: ...


def kinds_for(dialect: Dialect, format: str) -> Callable[[int], int]:
    """Type OID → how values of that type are written."""
    if format == "ndjson":
        return lambda oid: JSON

    def kind_of(oid: int) -> int:
        text = oid not in _PLAIN_VALUES and oid not in _OTHER_VALUES
        if dialect.quote_style == "all" or (dialect.quote_style == "strings" and text):
            kind = ALWAYS
        else:
            kind = PLAIN if oid in _PLAIN_VALUES or oid in _PLAIN_TEXT else SCAN
        # What is never text cannot be a formula: a negative number stays a number.
        return kind | GUARD if dialect.guard and text and kind != PLAIN else kind

    return kind_of


def bind_libpq(library: ctypes.CDLL) -> bool:
    """Hand the native encoder the accessors of the libpq that makes the results.

    Returns whether the native encoder can be used: not where it is not built or the symbols are hidden.
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
    """Which encoder serves this process, and so how rows are read; decided once, by `choose_encoders`.

    native: the native encoder, else the pure-Python one. streams: it reads rows as they arrive; otherwise rows come
    in the batches of a cursor.
    """

    native: bool
    streams: bool

    def for_batches(self, dialect: Dialect, format: str) -> Encoder:
        """Return an encoder of a cursor's batches, for one export."""
        return make_encoder(dialect, format, native=self.native)

    def for_streams(self, dialect: Dialect, format: str) -> NativeEncoder:
        """Return an encoder that reads rows itself, for one export. Only where this process `streams`."""
        return NativeEncoder(dialect, kinds_for(dialect, format))


def choose_encoders(library: ctypes.CDLL, *, chunked: bool, pure_python: bool) -> Encoders:
    """Decide for this process. library: the driver's libpq. chunked: it hands rows over in chunks (libpq 17)."""
    native = bind_libpq(library) and not pure_python
    return Encoders(native, native and chunked)


def make_encoder(dialect: Dialect, format: str, *, native: bool) -> Encoder:
    """An encoder for one export. native: what `bind_libpq` answered, unless the settings say otherwise."""
    kind_of = kinds_for(dialect, format)
    return NativeEncoder(dialect, kind_of) if native else PureEncoder(dialect, kind_of)


class NativeEncoder:
    """The Cython encoder, over `Batch.pgresult` or over rows as they arrive. For one thread at a time."""

    def __init__(self, dialect: Dialect, kind_of: Callable[[int], int]) -> None:
        self._dialect = dialect
        self._kind_of = kind_of
        self._encoder = _encode.Encoder(dialect.delimiter, dialect.quote, dialect.null, dialect.eol, kind_of)
        # The rows of a running statement, for a thread to read; see rows.RowReader.
        self.read = self._encoder.read
        self.failure = self._encoder.failure

    def encode(self, batch: Batch) -> bytes:
        lines: bytes = self._encoder.encode(batch.pgresult)
        return lines

    def another(self) -> NativeEncoder:
        """One that writes the same, for another thread."""
        return NativeEncoder(self._dialect, self._kind_of)


class PureEncoder:
    """The same bytes from fields as Python bytes, for machines without a compiler."""

    def __init__(self, dialect: Dialect, kind_of: Callable[[int], int]) -> None:
        self._dialect = dialect
        self._kind_of = kind_of
        special = b"[" + re.escape(dialect.delimiter + dialect.quote) + b"\r\n]"
        self._needs_quotes = re.compile(special).search

    def encode(self, batch: Batch) -> bytes:
        return self.lines(batch.rows(), [self._kind_of(oid) for oid in batch.types])

    def lines(self, rows: Iterable[Sequence[bytes | None]], kinds: Sequence[int]) -> bytes:
        """The rows, each a sequence of fields (None for NULL), as lines; the kind of each column."""
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
        if value == self._dialect.null:  # not NULL, and must not look like it
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
    """What stands before the first row: the byte order mark and the header, as far as there are any."""
    if format == "ndjson":
        return b""
    start = "\ufeff".encode() if dialect.bom else b""
    if dialect.header:
        kind = SCAN | GUARD if dialect.guard else SCAN
        encoder = PureEncoder(dialect, lambda oid: kind)
        start += encoder.lines([[name.encode() for name in names]], [kind] * len(names))
    return start
