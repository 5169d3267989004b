"""A value that is too large to be in memory twice, written in parts as it arrives.

The same rules as in `encoders.py`, and the same way as the native encoder: a value is held only as long as it is not
known whether it needs quotes. Does no I/O.
"""

from __future__ import annotations

import re
from collections import deque

from server.encode.kinds import ALWAYS, GUARD, JSON, PLAIN
from server.postgres.reader import HELD_BYTES
from server.query.dialect import Dialect
from server.query.spreadsheets import GuardInParts


class LargeValue:
    """One value of more than LARGE_BYTES: a `large_row.ValueWriter`.

    It is neither the text for NULL nor a lone \\., and no spreadsheet takes it for a number. held_bytes: how many bytes
    of it are held.
    """

    def __init__(self, dialect: Dialect, kind: int, before: bytes) -> None:
        """kind: of the column. before: what stands before the value."""
        self._quote = dialect.quote
        self._needs_quotes = re.compile(b"[" + re.escape(dialect.delimiter + dialect.quote) + b"\r\n]").search
        self._json = bool(kind & JSON)
        self._guard = GuardInParts() if kind & GUARD else None
        # Whether the value is in quotes; None as long as that is not known.
        self._quoted: bool | None = None
        if self._json or kind == PLAIN:
            self._quoted = False
        elif kind & ALWAYS:
            self._quoted = True
        self._before = before + self._quote if self._quoted else before
        self._parts: deque[bytes] = deque()
        self._ended = False
        self.held_bytes = 0

    def add(self, part: bytes, *, may_hold: bool) -> bool:
        """Take the next bytes of the value. Return False if they would have to be held and must not be.

        may_hold: whether the value may be held whole, and not only HELD_BYTES of it.
        """
        if self._quoted is None:
            if self._needs_quotes(part) is not None:
                self._quoted = True
                self._before += self._quote
            elif self.held_bytes + len(part) > HELD_BYTES and not may_hold:
                return False
        self._parts.append(part)
        self.held_bytes += len(part)
        return True

    def end(self) -> None:
        """Note that the value is complete."""
        self._quoted = bool(self._quoted)
        self._ended = True

    def pass_over(self) -> None:
        """Write the value as if it needed no quotes."""
        self._quoted = False

    def take(self) -> bytes | None:
        """Return the next bytes of the file, None if there are none yet, or none any more."""
        if self._before:
            before, self._before = self._before, b""
            return before
        if self._quoted is None:
            return None
        if self._parts:
            part = self._parts.popleft()
            self.held_bytes -= len(part)
            return self._written(part)
        if self._ended:
            self._ended = False
            last = b"" if self._guard is None else self._guard.end()
            return last + self._quote if self._quoted else last
        return None

    def _written(self, part: bytes) -> bytes:
        if self._guard is not None:
            part = self._guard.write(part)
        if self._quoted:
            return part.replace(self._quote, self._quote * 2)
        return part.replace(b"\n", b" ").replace(b"\r", b" ") if self._json else part
