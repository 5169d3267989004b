"""The messages of PostgreSQL's frontend/backend protocol 3.0: built from values, and parsed from bytes.

Pure: values in, bytes out. Sources: PostgreSQL manual, "Frontend/Backend Protocol", "Message Formats", "Error and
Notice Message Fields".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

# The types of the backend's messages, as the first byte of each.
BIND_COMPLETE, CLOSE_COMPLETE, COMMAND_COMPLETE, DATA_ROW, EMPTY_QUERY = b"23CDI"
ERROR, NO_DATA, NOTICE, NOTIFICATION, PARAMETERS = b"EnNAt"
PARAMETER_STATUS, PARSE_COMPLETE, PORTAL_SUSPENDED, READY, ROW_DESCRIPTION = b"S1sZT"

# The status in ReadyForQuery of a session without a transaction.
IDLE = b"I"
# Messages that the backend may send between any two others. They belong to no statement.
_ASYNCHRONOUS = frozenset((NOTICE, NOTIFICATION, PARAMETER_STATUS))
# Messages whose length is always the same, and that length, which includes its own four bytes.
_FIXED = {
    **dict.fromkeys((BIND_COMPLETE, CLOSE_COMPLETE, EMPTY_QUERY, NO_DATA, PARSE_COMPLETE, PORTAL_SUSPENDED), 4),
    READY: 5,
}
# Messages of any length.
_ANY_LENGTH = frozenset(
    (COMMAND_COMPLETE, DATA_ROW, ERROR, NOTICE, NOTIFICATION, PARAMETERS, PARAMETER_STATUS, ROW_DESCRIPTION)
)
# The length that a message may state: a signed number of 32 bits.
_LONGEST = (1 << 31) - 1
# Bytes of an ErrorResponse that are kept. PostgreSQL repeats a value that it rejects, of any length. The SQLSTATE and
# the message come first.
KEPT_BYTES = 256 << 10
# Most values of one Bind message, which counts them in 16 bits.
MOST_VALUES = 65535

_HEADER = struct.Struct("!BI")
COUNT = struct.Struct("!H")
LENGTH = struct.Struct("!i")
# What follows the name of a column in a RowDescription: table, column, type, size, modifier, format.
_COLUMN = struct.Struct("!IHIhih")


class ProtocolError(Exception):
    """The backend sent what the protocol does not allow. The connection cannot be used any more."""


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + LENGTH.pack(len(body) + 4) + body


def parse(sql: str, name: str = "", types: Sequence[int] = ()) -> bytes:
    """Return Parse: prepare a statement under this name.

    types: OIDs of the types of its first parameters, at most MOST_VALUES, used or not. The server infers the others.
    """
    declared = COUNT.pack(len(types)) + struct.pack(f"!{len(types)}I", *types)
    return _message(b"P", name.encode() + b"\0" + sql.encode() + b"\0" + declared)


def bind(values: Sequence[bytes | None], *, statement: str = "", portal: str = "") -> bytes:
    """Return Bind: open a portal over a prepared statement. values: in text form, None for NULL; at most MOST_VALUES.

    The columns of the result are sent in text form too.
    """
    parts = [portal.encode(), b"\0", statement.encode(), b"\0", COUNT.pack(0), COUNT.pack(len(values))]
    for value in values:
        if value is None:
            parts.append(LENGTH.pack(-1))
        else:
            parts += (LENGTH.pack(len(value)), value)
    parts.append(COUNT.pack(0))
    return _message(b"B", b"".join(parts))


def describe(portal: str = "") -> bytes:
    """Return Describe of a portal; the answer is RowDescription, or NoData."""
    return _message(b"D", b"P" + portal.encode() + b"\0")


def describe_statement(name: str = "") -> bytes:
    """Return Describe of a prepared statement; the answer is ParameterDescription, then as for a portal."""
    return _message(b"D", b"S" + name.encode() + b"\0")


def execute(portal: str = "", rows: int = 0) -> bytes:
    """Return Execute: the next rows of the portal, at most `rows`; 0 for all of them."""
    return _message(b"E", portal.encode() + b"\0" + LENGTH.pack(rows))


def close(portal: str) -> bytes:
    """Return Close of a portal."""
    return _message(b"C", b"P" + portal.encode() + b"\0")


SYNC = _message(b"S")
# Makes the backend send what it has so far.
FLUSH = _message(b"H")


class Messages:
    """Received bytes, split into messages. Feed it, then iterate over the messages that are complete.

    Messages that belong to no statement (notices, notifications, parameters of the session) are dropped. row_left: how
    many bytes of a DataRow that is too long to be put together were not taken.
    """

    def __init__(self, longest_first: int = _LONGEST, longest_row: int = _LONGEST) -> None:
        """longest_first: the length that the first message may state. longest_row: of a DataRow that is put together.

        The iteration stops at a longer one, whose body `take_part` returns in parts.
        """
        self._longest = longest_first
        self._longest_row = longest_row
        # Bytes of its body that were not taken.
        self.row_left = 0
        self._data = b""
        self._at = 0
        # Of a message that is longer than what has arrived of it: joined once, when it is complete.
        self._pieces: list[bytes] = []
        self._missing = 0
        # How many bytes are still to come of a message that is dropped.
        self._dropped = 0

    @property
    def empty(self) -> bool:
        """Whether every received byte belongs to a message that was taken."""
        return self._at == len(self._data) and not (self._pieces or self._dropped or self.row_left)

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        if self._dropped:
            dropped = min(self._dropped, len(data))
            self._dropped -= dropped
            self._data, self._at = data[dropped:], 0
        elif self._pieces:
            self._pieces.append(data)
            self._missing -= len(data)
            if self._missing <= 0:
                self._data, self._at = b"".join(self._pieces), 0
                self._pieces = []
        else:
            self._data, self._at = self._data[self._at :] + data, 0

    def take_part(self) -> bytes:
        """Return what has arrived of the body of a long DataRow, or b"". `row_left` is 0 after its last part."""
        part = self._data[self._at : self._at + self.row_left]
        self._at += len(part)
        self.row_left -= len(part)
        return part

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Yield the type and the body of each complete message, or of an error of more than KEPT_BYTES its beginning.

        The iteration may stop anywhere and start again.
        Raise ProtocolError at a type that is unknown here, or a length that it cannot have.
        """
        if self.row_left:
            return
        data, at, size = self._data, self._at, len(self._data)
        while size - at >= _HEADER.size:
            kind, length = _HEADER.unpack_from(data, at)
            if kind not in _ANY_LENGTH and _FIXED.get(kind) != length:
                raise ProtocolError(f"a message of type {kind:#04x} and length {length}")
            if not 4 <= length <= self._longest:
                raise ProtocolError(f"a message of length {length}")
            end = at + 1 + length
            if kind in _ASYNCHRONOUS:
                self._longest = _LONGEST
                self._dropped = max(0, end - size)
                self._at = at = min(end, size)
                continue
            if end > size:
                if kind == DATA_ROW and length > self._longest_row:
                    self.row_left = length - LENGTH.size
                    self._at = at + _HEADER.size
                    return
                kept = at + KEPT_BYTES if kind == ERROR and length > KEPT_BYTES else end
                if kept > size:
                    self._pieces, self._missing = [data[at:]], kept - size
                    self._data, self._at = b"", 0
                    return
                self._dropped = end - size
                end = size
            else:
                kept = end
            self._at = end
            self._longest = _LONGEST
            yield kind, data[at + _HEADER.size : kept]
            at = end


def columns(description: bytes) -> list[tuple[str, int]]:
    """Return the name and the type OID of each column of a RowDescription. Raise ProtocolError if it is malformed."""
    try:
        (count,) = COUNT.unpack_from(description)
        at = COUNT.size
        found = []
        for _ in range(count):
            end = description.index(b"\0", at)
            oid = _COLUMN.unpack_from(description, end + 1)[2]
            found.append((description[at:end].decode(errors="replace"), oid))
            at = end + 1 + _COLUMN.size
    except (struct.error, ValueError):
        raise ProtocolError("a malformed RowDescription") from None
    if at != len(description):
        raise ProtocolError("a malformed RowDescription")
    return found


def parameter_types(description: bytes) -> list[int]:
    """Return the type OID of each parameter of a ParameterDescription. Raise ProtocolError if it is malformed."""
    try:
        (count,) = COUNT.unpack_from(description)
        return list(struct.unpack(f"!{count}I", description[COUNT.size :]))
    except struct.error:
        raise ProtocolError("a malformed ParameterDescription") from None


def fields(row: bytes, count: int) -> list[bytes | None]:
    """Return the values of a DataRow in text form, None for NULL. Raise ProtocolError if it has not `count` of them."""
    values: list[bytes | None] = []
    append, unpack = values.append, LENGTH.unpack_from
    end = COUNT.size
    try:
        if COUNT.unpack_from(row)[0] != count:
            raise ProtocolError("a DataRow with another number of columns")
        for _ in range(count):
            start = end + LENGTH.size
            end = start + unpack(row, end)[0]
            if end >= start:
                append(row[start:end])
            elif end == start - 1:
                append(None)
                end = start
            else:
                raise ProtocolError("a value of negative length")
    except struct.error:
        raise ProtocolError("a DataRow that ends too early") from None
    if end != len(row):
        raise ProtocolError("a DataRow whose values do not fill it")
    return values


def error_fields(body: bytes) -> dict[str, str]:
    """Return the fields of an ErrorResponse by their codes: "C" the SQLSTATE, "M" the primary message.

    body: perhaps only its beginning. Fields that are cut off may be missing.
    """
    found: dict[str, str] = {}
    for field in body.split(b"\0"):
        if field:
            found.setdefault(chr(field[0]), field[1:].decode(errors="replace"))
    return found
