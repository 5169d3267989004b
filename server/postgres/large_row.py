"""A DataRow that is too large to be in memory twice: split into its values while it arrives.

Pure: bytes in, bytes out. What the values become is the matter of a `LineWriter`.
"""

from __future__ import annotations

from typing import Protocol

from server.postgres.messages import COUNT, LENGTH, ProtocolError
from server.postgres.reader import LARGE_BYTES


class ValueWriter(Protocol):
    """Writes one value of more than LARGE_BYTES. held_bytes: how many bytes of it are held."""

    held_bytes: int

    def add(self, part: bytes, /, *, may_hold: bool) -> bool:
        """Take the next bytes. Return False, and take nothing, if they would have to be held and must not be."""
        ...

    def end(self) -> None:
        """Note that the value is complete."""
        ...

    def pass_over(self) -> None:
        """Hold nothing from now on: nobody uses what is written."""
        ...

    def take(self) -> bytes | None:
        """Return the next bytes of the line, or None if there are none yet, or none any more."""
        ...


class LineWriter(Protocol):
    """Writes one row value by value. columns: how many values it has."""

    columns: int

    def value(self, value: bytes | None, /) -> bytes:
        """Return the bytes of the next value, which is whole."""
        ...

    def large_value(self, length: int, /) -> ValueWriter:
        """Return what writes the next value, of this length."""
        ...

    def end(self) -> bytes:
        """Return the end of the line."""
        ...


class LargeRow:
    """One row. Feed it, then `take` until that returns None.

    complete: whether the line has been taken whole. wanted: the length of the value of which more would have to be held
    than is allowed, 0 if nothing is in the way. column: the number of the current column, counted from 0.
    """

    def __init__(self, writer: LineWriter, length: int) -> None:
        """length: of the body of the DataRow."""
        self._writer = writer
        self._left = length  # bytes of the body that were not taken
        self._data = b""
        self._at = 0
        self._value: ValueWriter | None = None
        self._size = 0  # of the current value
        self._value_left = -1  # bytes of it that were not taken, -1 without one
        self._counted = False
        self._may_hold = False
        self.complete = False
        self.wanted = 0
        self.column = 0

    @property
    def held_bytes(self) -> int:
        """How many bytes are held of a value that `hold` was called for."""
        return self._value.held_bytes if self._value is not None and self._may_hold else 0

    def feed(self, data: bytes) -> None:
        """Add bytes of the body that have arrived."""
        if data:
            self._data, self._at = self._data[self._at :] + data, 0

    def hold(self) -> None:
        """Allow the value that is in the way to be held whole."""
        self._may_hold = True
        self.wanted = 0

    def pass_over(self) -> None:
        """Write the value that is in the way at once, without knowing how."""
        if self._value is not None:
            self._value.pass_over()
        self.wanted = 0

    def take(self) -> bytes | None:
        """Return the next bytes of the line. None: more has to arrive, a value is in the way, or the line is complete.

        Raise ProtocolError if the row is malformed.
        """
        while not (self.wanted or self.complete):
            if self._value is not None:
                written = self._value.take()
                if written is not None or not self._go_on(self._value):
                    return written
            elif self._value_left >= 0:
                value = self._whole(self._value_left)
                if value is None:
                    return None
                self._value_left = -1
                self.column += 1
                return self._writer.value(value)
            elif not self._counted:
                count = self._whole(COUNT.size)
                if count is None:
                    return None
                if COUNT.unpack(count)[0] != self._writer.columns:
                    raise ProtocolError("a DataRow with another number of columns")
                self._counted = True
            elif self.column == self._writer.columns:
                if self._left:
                    raise ProtocolError("a DataRow whose values do not fill it")
                self.complete = True
                return self._writer.end()
            else:
                length = self._whole(LENGTH.size)
                if length is None:
                    return None
                (size,) = LENGTH.unpack(length)
                if size == -1:
                    self.column += 1
                    return self._writer.value(None)
                self._begin(size)
        return None

    def _begin(self, size: int) -> None:
        """Begin a value that is not NULL."""
        if not 0 <= size <= self._left:
            raise ProtocolError("a value that does not fit its row")
        self._size = self._value_left = size
        if size > LARGE_BYTES:
            self._value = self._writer.large_value(size)
            self._may_hold = False

    def _go_on(self, value: ValueWriter) -> bool:
        """Pass to the large value what has arrived of it, or end it. Return whether that was possible."""
        if self._value_left < 0:  # it has ended, and is written whole
            self._value = None
            self.column += 1
            return True
        part = self._data[self._at : self._at + self._value_left]
        if not part:
            return False
        if not value.add(part, may_hold=self._may_hold):
            self.wanted = self._size
            return False
        self._count(len(part))
        self._value_left -= len(part)
        if not self._value_left:
            value.end()
            self._value_left = -1
        return True

    def _whole(self, size: int) -> bytes | None:
        """Take so many bytes of the body, or None if they have not arrived."""
        if size > self._left:
            raise ProtocolError("a DataRow that ends too early")
        if len(self._data) - self._at < size:
            return None
        data = self._data[self._at : self._at + size]
        self._count(size)
        return data

    def _count(self, taken: int) -> None:
        self._at += taken
        self._left -= taken
