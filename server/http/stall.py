"""The time in which a client has to take something of a response.

A full send buffer accepts more only when about a third of it has drained, which is more than a megabyte. So the time
between two writes does not tell whether the client reads. What the other end has acknowledged does.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import sys
import termios
from types import TracebackType

# Looks at the connection in each stall time-out. A client that stops is cut at most one look late.
LOOKS = 4


class StallLimit:
    """A context that raises TimeoutError if the client acknowledges nothing for too long while it waits for a write.

    Costs one timer. Looks at the connection only if the wait takes long.
    """

    def __init__(self, transport: asyncio.WriteTransport | None, seconds: float) -> None:
        """transport: of the client's connection, None once that is closed. seconds: 0 for no limit."""
        self._transport = transport
        self._interval = seconds / LOOKS
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        # What the last look saw, and how many looks before it saw the same.
        self._seen: int | None = None
        self._same = 0

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._look_later()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._timeout.__aexit__(kind, error, traceback)  # which raises TimeoutError

    def _look_later(self) -> None:
        if self._interval:
            self._timer = asyncio.get_running_loop().call_later(self._interval, self._look)

    def _look(self) -> None:
        seen = unacknowledged(self._transport)
        self._same = self._same + 1 if seen == self._seen else 0
        self._seen = seen
        if self._same < LOOKS:
            self._look_later()
        else:
            self._timeout.reschedule(asyncio.get_running_loop().time())


class Backlog:
    """Tells whether a client has stopped reading what it is sent now and then, in pieces too small to fill a buffer."""

    def __init__(self, transport: asyncio.WriteTransport | None, seconds: float) -> None:
        """transport, seconds: as of StallLimit."""
        self._transport = transport
        self._seconds = seconds
        self._sent = self._acknowledged = 0
        self._since: float | None = None

    def is_stuck(self, count: int, now: float) -> bool:
        """Return whether the client has acknowledged nothing for too long. Called before each piece is sent.

        count: the bytes of the piece. now: in the time of the event loop.
        """
        held = unacknowledged(self._transport)
        acknowledged = self._sent - held  # a little too low: the sizes of the chunks are sent too
        self._sent += count
        if not held or acknowledged > self._acknowledged or self._since is None:
            self._acknowledged, self._since = acknowledged, now
        return self._seconds > 0 and now - self._since >= self._seconds


def unacknowledged(transport: asyncio.WriteTransport | None) -> int:
    """Return how many of the bytes that were written to this transport its other end has not acknowledged.

    Counts what the event loop holds, and on Linux what the kernel holds (SIOCOUTQ: man 7 tcp). Elsewhere a part of it
    may drain unnoticed.
    """
    if transport is None:
        return 0
    held = 0
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError, ValueError):  # not Linux, or the socket is closed
            held = int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return transport.get_write_buffer_size() + held
