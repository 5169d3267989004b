"""The contract between `rows.py` and what reads rows from the socket: the native encoder, or `portal.py`.

Rows come from a named portal, PostgreSQL's server-side cursor in the protocol. A unit is a run of messages that ends
with Sync and is answered with ReadyForQuery. A statement is one unit, or several for a portal that is executed in
batches: PostgreSQL suspends the portal after each batch, and the reader asks for the next one. Pure.
"""

from __future__ import annotations

from typing import Protocol

# How a read ended: the enum MORE, END, … of server/encode/_encode.pyx has the same numbers.
MORE, END, FAILED, LOST, TIMED_OUT, WOKEN, ROOM = range(7)

# Rows that one Execute of a batch asks for. Fewer than a thousand cost time; a suspended portal costs nothing. Measured
# in docs/performance.md.
BATCH_ROWS = 10_000

# Units that are sent and not answered when a portal was suspended: the one that has just ended, the one that the server
# runs meanwhile, and one ahead, so that the server never waits for a round trip.
UNITS_AHEAD = 3

# Milliseconds to wait for more rows when there are some already, but less than the caller wants.
LINGER = 10

# Bytes of a value beyond which it is written in parts, as it arrives.
LARGE_BYTES = 64 << 10

# Bytes of such a value that a reader may hold at once as long as it does not know whether the value needs quotes. It
# has to be allowed to hold more. The reader in Python also has rows of fewer bytes whole in memory.
HELD_BYTES = 1 << 20


class Bytes(Protocol):
    """A connection's bytes: see `wire.Wire`."""

    descriptor: int
    ssl: int

    def receive(self) -> bytes | None: ...

    def send(self, data: bytes, /) -> int: ...


class RowReader(Protocol):
    """Reads the rows of portals from a connection and encodes them. Only one thread may use it at a time."""

    def start(self, messages: bytes, units: int, more: bytes, /) -> None:
        """Send these messages in the next call that reads. They begin a statement after those that were started before.

        units: how many Syncs the messages hold. more: the unit that executes the next batch, sent whenever the portal
        is suspended; b"" if the portal is executed as a whole. A statement with `more` is the last one until it ends.
        """
        ...

    def read(self, wire: Bytes, wake: int, most: int, patience: int, /) -> tuple[bytes, int, int]:
        """Block until `most` bytes of lines are there, or the statement ends, or its rows come slowly.

        wake: a descriptor; the call ends (WOKEN) when it is readable. patience: milliseconds to wait for the next bytes
        (TIMED_OUT), -1 for no limit. Return the lines, the number of rows that end in them, and how the read ended:
        MORE; END of the oldest statement; FAILED, and the server has answered everything; LOST: the connection ended,
        or the server sent what the protocol does not allow; TIMED_OUT; WOKEN; ROOM: a value has to be held that is too
        large for that, so call `hold` or `pass_over` before the next read. After TIMED_OUT and WOKEN a reader may be
        LOST, since it need not keep the beginning of a row.
        """
        ...

    def read_arrived(self, wire: Bytes, most: int, /) -> tuple[bytes, int, int] | None:
        """Send and take what is possible without waiting: what has arrived, at most as much as one receive gives.

        Return as `read` does if that ends the read. Otherwise return None; the lines so far are those with which the
        next `read` begins. A row that is larger than the receive buffer is left to that.
        """
        ...

    @property
    def wanted(self) -> int:
        """After ROOM, how many bytes have to be held: the length of the value."""
        ...

    @property
    def column(self) -> int:
        """After ROOM, the number of the value's column, counted from 0."""
        ...

    @property
    def held_bytes(self) -> int:
        """How many bytes of a value are held since `hold`, at most what was wanted."""
        ...

    def hold(self) -> None:
        """Hold the value that ended the last read (ROOM)."""
        ...

    def pass_over(self) -> None:
        """Do not hold the value that ended the last read (ROOM): nobody uses the lines from now on."""
        ...

    def close(self) -> None:
        """Give back what is held. Nothing is read afterwards."""
        ...

    def failure(self) -> bytes | None:
        """Return the body of the first ErrorResponse, if there was one."""
        ...

    @property
    def clean(self) -> bool:
        """Whether every unit was answered and no byte is left over, in either direction."""
        ...
