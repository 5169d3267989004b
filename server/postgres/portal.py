"""Rows of portals, read in Python: for the pure-Python encoder and for previews.

Reads as the native encoder does (`encode/_encode.pyx`). A DataRow of up to HELD_BYTES is whole in memory.
"""

from __future__ import annotations

import select
from typing import Protocol

from server.postgres import messages
from server.postgres.large_row import LargeRow, LineWriter
from server.postgres.messages import DATA_ROW, ERROR, PORTAL_SUSPENDED, READY, ROW_DESCRIPTION, Messages, ProtocolError
from server.postgres.reader import (
    END,
    FAILED,
    HELD_BYTES,
    LINGER,
    LOST,
    MORE,
    ROOM,
    TIMED_OUT,
    UNITS_AHEAD,
    WOKEN,
    Bytes,
)


class RowWriter(Protocol):
    """Turns rows into lines. describe: called with the types of the columns before the first row."""

    def describe(self, types: list[int], /) -> None: ...

    def line(self, row: bytes, /) -> bytes:
        """Return the line of a DataRow, given as the body of the message."""
        ...

    def in_parts(self) -> LineWriter:
        """Return what writes the line of a DataRow that is not given as a whole."""
        ...


class PortalReader:
    """A `reader.RowReader` in Python."""

    def __init__(self, writer: RowWriter) -> None:
        self._writer = writer
        self._messages = Messages(longest_row=HELD_BYTES)
        self._unsent = b""
        self._unanswered = 0
        self._more = b""
        self._suspended = False
        self._failure: bytes | None = None
        self._described = False
        self._broken = False
        # Lines that `read_arrived` has left to `read`.
        self._lines: list[bytes] = []
        self._rows = 0
        self._used = 0
        # A row that is written as it arrives.
        self._row: LargeRow | None = None

    def start(self, messages: bytes, units: int, more: bytes) -> None:
        """See `RowReader.start`."""
        self._unsent += messages
        self._unanswered += units
        self._more = more

    def read(self, wire: Bytes, wake: int, most: int, patience: int) -> tuple[bytes, int, int]:
        """See `RowReader.read`."""
        try:
            ended = self._read(wire, wake, most, patience)
        except (OSError, ProtocolError):
            ended = LOST
        return self._result(ended)

    def read_arrived(self, wire: Bytes, most: int) -> tuple[bytes, int, int] | None:
        """See `RowReader.read_arrived`."""
        try:
            ended = self._take_all(most)
            if ended is None and self._receive_now(wire):
                ended = self._take_all(most)
        except (OSError, ProtocolError):
            ended = LOST
        return None if ended is None else self._result(ended)

    def _result(self, ended: int) -> tuple[bytes, int, int]:
        lines, rows = b"".join(self._lines), self._rows
        self._lines, self._rows, self._used = [], 0, 0
        self._broken |= ended == LOST
        return lines, rows, ended

    @property
    def wanted(self) -> int:
        """See `RowReader.wanted`."""
        return 0 if self._row is None else self._row.wanted

    @property
    def column(self) -> int:
        """See `RowReader.column`."""
        return 0 if self._row is None else self._row.column

    @property
    def held_bytes(self) -> int:
        """See `RowReader.held_bytes`."""
        return 0 if self._row is None else self._row.held_bytes

    def hold(self) -> None:
        """See `RowReader.hold`."""
        if self._row is not None:
            self._row.hold()

    def pass_over(self) -> None:
        """See `RowReader.pass_over`."""
        if self._row is not None:
            self._row.pass_over()

    def close(self) -> None:
        """See `RowReader.close`."""
        self._broken |= self._row is not None
        self._row = None

    def failure(self) -> bytes | None:
        """See `RowReader.failure`."""
        return self._failure

    @property
    def clean(self) -> bool:
        """See `RowReader.clean`."""
        return not (self._broken or self._unsent or self._unanswered) and self._messages.empty

    def _read(self, wire: Bytes, wake: int, most: int, patience: int) -> int:
        while True:
            ended = self._take_all(most)
            if ended is None:
                ended = self._receive(wire, wake, LINGER if self._lines else patience)
            if ended is not None:
                return MORE if self._lines and ended == TIMED_OUT else ended

    def _take_all(self, most: int) -> int | None:
        """Take what has arrived. Return how the read ends, or None."""
        if self._broken:
            return LOST
        while True:
            if self._row is not None:
                ended = self._take_parts(self._row, most)
                if ended is not None or self._row is not None:
                    return ended
            ended = self._take_messages(most)
            if ended is not None or not self._messages.row_left:
                return ended
            if not self._described:
                raise ProtocolError("a row before the description of its columns")
            self._row = LargeRow(self._writer.in_parts(), self._messages.row_left)

    def _take_parts(self, row: LargeRow, most: int) -> int | None:
        """Take what has arrived of a large row. Return how the read ends, or None."""
        row.feed(self._messages.take_part())
        while (written := row.take()) is not None:
            self._lines.append(written)
            self._used += len(written)
            if row.complete:
                self._row = None
                self._rows += 1
            if self._used >= most:
                return MORE
            if row.complete:
                return None
        return ROOM if row.wanted else None

    def _take_messages(self, most: int) -> int | None:
        """Take the messages that have arrived whole. Return how the read ends, or None."""
        before = len(self._lines)
        try:
            return self._take_each(most)
        finally:
            self._rows += len(self._lines) - before

    def _take_each(self, most: int) -> int | None:
        used, line_of, append = self._used, self._writer.line, self._lines.append
        for kind, body in self._messages:
            if kind == DATA_ROW:
                if not self._described:
                    raise ProtocolError("a row before the description of its columns")
                line = line_of(body)
                append(line)
                used += len(line)
                if used >= most:
                    return MORE
            elif (ended := self._take(kind, body)) is not None:
                return ended
        self._used = used
        return None

    def _take(self, kind: int, body: bytes) -> int | None:
        """Take a message that is no row. Return how the read ends, or None."""
        if kind == ROW_DESCRIPTION:
            self._writer.describe([oid for _, oid in messages.columns(body)])
            self._described = True
        elif kind == ERROR:
            self._failure = self._failure or body
        elif kind == PORTAL_SUSPENDED:
            if not self._more:
                raise ProtocolError("a portal without a row limit was suspended")
            self._suspended = True
            while self._failure is None and self._unanswered < UNITS_AHEAD:
                self._unsent += self._more
                self._unanswered += 1
        elif kind == READY:
            return self._ready()
        return None

    def _ready(self) -> int | None:
        if not self._unanswered:
            raise ProtocolError("an answer to nothing")
        self._unanswered -= 1
        suspended, self._suspended = self._suspended, False
        if self._failure is not None:
            return None if self._unanswered else FAILED
        # After the last row the units ahead find a portal without rows.
        return None if suspended or (self._more and self._unanswered) else END

    def _receive(self, wire: Bytes, wake: int, patience: int) -> int | None:
        """Send and receive what is possible. Return how the read ends, or None after something was received."""
        while not self._receive_now(wire):
            poll = select.poll()
            poll.register(wire.descriptor, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            poll.register(wake, select.POLLIN)
            ready = poll.poll(None if patience < 0 else patience)
            if not ready:
                return TIMED_OUT
            if any(descriptor == wake for descriptor, _ in ready):
                return WOKEN
        return None

    def _receive_now(self, wire: Bytes) -> bool:
        """Send and receive what is possible without waiting. Return whether something was received.

        Raise OSError at the end of the connection.
        """
        failed: OSError | None = None
        if self._unsent:
            try:
                self._unsent = self._unsent[wire.send(self._unsent) :]
            except OSError as error:  # the server may have said why, before it closed the connection
                failed = error
        data = wire.receive()
        if data == b"" or (data is None and failed is not None):
            raise failed or ConnectionResetError
        if data is not None:
            self._messages.feed(data)
        return data is not None
