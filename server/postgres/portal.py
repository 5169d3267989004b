"""Rows of portals, read in Python: for the pure-Python encoder and for previews.

Reads as the native encoder does (`encode/_encode.pyx`), with each DataRow whole in memory.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Protocol

from server.postgres import messages
from server.postgres.messages import DATA_ROW, ERROR, PORTAL_SUSPENDED, READY, ROW_DESCRIPTION, Messages, ProtocolError
from server.postgres.reader import END, FAILED, LINGER, LOST, MORE, TIMED_OUT, UNITS_AHEAD, WOKEN, Bytes


class RowWriter(Protocol):
    """Turns rows into lines. describe: called with the types of the columns before the first row."""

    def describe(self, types: list[int], /) -> None: ...

    def line(self, row: bytes, /) -> bytes:
        """Return the line of a DataRow, given as the body of the message."""
        ...


class PortalReader:
    """A `reader.RowReader` in Python."""

    def __init__(self, writer: RowWriter) -> None:
        self._writer = writer
        self._messages = Messages()
        self._unsent = b""
        self._unanswered = 0
        self._more = b""
        self._suspended = False
        self._failure: bytes | None = None
        self._described = False
        self._broken = False

    def start(self, messages: bytes, units: int, more: bytes) -> None:
        """See `RowReader.start`."""
        self._unsent += messages
        self._unanswered += units
        self._more = more

    def read(self, wire: Bytes, wake: int, most: int, patience: int) -> tuple[bytes, int, int]:
        """See `RowReader.read`."""
        lines: list[bytes] = []
        try:
            ended = self._read(wire, wake, most, patience, lines.append)
        except (OSError, ProtocolError):
            ended = LOST
        self._broken |= ended == LOST
        return b"".join(lines), len(lines), ended

    def failure(self) -> bytes | None:
        """See `RowReader.failure`."""
        return self._failure

    @property
    def clean(self) -> bool:
        """See `RowReader.clean`."""
        return not (self._broken or self._unsent or self._unanswered) and self._messages.empty

    def _read(self, wire: Bytes, wake: int, most: int, patience: int, append: Callable[[bytes], None]) -> int:
        if self._broken:
            return LOST
        used = rows = 0
        line_of = self._writer.line
        while True:
            for kind, body in self._messages:
                if kind == DATA_ROW:
                    if not self._described:
                        raise ProtocolError("a row before the description of its columns")
                    line = line_of(body)
                    append(line)
                    rows += 1
                    used += len(line)
                    if used >= most:
                        return MORE
                elif (ended := self._take(kind, body)) is not None:
                    return ended
            ended = self._receive(wire, wake, LINGER if rows else patience)
            if ended is not None:
                return MORE if rows and ended == TIMED_OUT else ended

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
        closed = False
        while True:
            if self._unsent:
                try:
                    self._unsent = self._unsent[wire.send(self._unsent) :]
                except OSError:  # the server may have said why, before it closed the connection
                    closed = True
            data = wire.receive()
            if data is not None:
                self._messages.feed(data)
                return None if data else LOST
            if closed:
                return LOST
            poll = select.poll()
            poll.register(wire.descriptor, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            poll.register(wake, select.POLLIN)
            ready = poll.poll(None if patience < 0 else patience)
            if not ready:
                return TIMED_OUT
            if any(descriptor == wake for descriptor, _ in ready):
                return WOKEN
