"""A scripted backend: one end of a socket pair that sends what a test wants, in the pieces that the test wants.

The messages are built here a second time, without any code of `server/`.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import itertools
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType

from server.postgres.wire import Wire

BOOL, TEXT, INT4, JSON = 16, 25, 23, 114


def message(kind: bytes, body: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a message. length: what it states as its length, if not the true one; 32 bits, perhaps negative."""
    return kind + struct.pack("!I", (len(body) + 4 if length is None else length) & 0xFFFFFFFF) + body


PARSED, BOUND, CLOSED = message(b"1"), message(b"2"), message(b"3")
SUSPENDED, EMPTY_QUERY, NO_DATA = message(b"s"), message(b"I"), message(b"n")
READY = message(b"Z", b"T")
COMPLETE = message(b"C", b"SELECT 3\0")


def description(types: Sequence[int]) -> bytes:
    """Return RowDescription: columns c0, c1, … of these types."""
    columns = [b"c%d\0" % at + struct.pack("!IHIhih", 0, 0, oid, -1, -1, 0) for at, oid in enumerate(types)]
    return message(b"T", struct.pack("!H", len(types)) + b"".join(columns))


def field(value: bytes | None) -> bytes:
    """Return a field of a DataRow, with its length."""
    return struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value


def row(*values: bytes | None) -> bytes:
    """Return DataRow."""
    return message(b"D", struct.pack("!H", len(values)) + b"".join(map(field, values)))


def _fields(fields: dict[str, str]) -> bytes:
    return b"".join(code.encode() + text.encode() + b"\0" for code, text in fields.items()) + b"\0"


def error(**fields: str) -> bytes:
    """Return ErrorResponse with these fields, by their codes."""
    return message(b"E", _fields(fields))


def notice(text: str) -> bytes:
    """Return NoticeResponse."""
    return message(b"N", _fields({"S": "NOTICE", "C": "00000", "M": text}))


def parameter_status(name: bytes, value: bytes) -> bytes:
    """Return ParameterStatus."""
    return message(b"S", name + b"\0" + value + b"\0")


def notification(payload: bytes) -> bytes:
    """Return NotificationResponse."""
    return message(b"A", struct.pack("!I", 42) + b"channel\0" + payload + b"\0")


class FakeBackend:
    """The backend's end. wire: the other end, for what is tested. wake: a descriptor that `wake_up` makes readable."""

    def __init__(self) -> None:
        self._backend, self._frontend = socket.socketpair()
        self._wake, self._waker = socket.socketpair()
        self._frontend.setblocking(False)
        self._sender: threading.Thread | None = None
        self._stopped = False
        self.wire = Wire(self._frontend.fileno())
        self.wake = self._wake.fileno()

    def __enter__(self) -> FakeBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped = True
        self._frontend.shutdown(socket.SHUT_RDWR)  # ends a `sendall` of the thread
        if self._sender is not None:
            self._sender.join()
        for each in (self._backend, self._frontend, self._wake, self._waker):
            each.close()

    def send(self, data: bytes) -> None:
        """Send a little at once."""
        self._backend.sendall(data)

    def play(self, pieces: Sequence[bytes], *, ends: bool = False) -> None:
        """Send the pieces in a thread, each when the one before has been received. ends: close the connection then."""
        self._sender = threading.Thread(target=self._play, args=(pieces, ends))
        self._sender.start()

    def end(self) -> None:
        """Send no more: the other end reads the end of the connection after what was sent."""
        self._backend.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection: the other end reads what was sent, and its own messages fail."""
        self._backend.close()

    def received(self) -> bytes:
        """Return what the other end has sent since the last call."""
        data = b""
        with contextlib.suppress(BlockingIOError):
            while more := self._backend.recv(1 << 20, socket.MSG_DONTWAIT):
                data += more
        return data

    def wake_up(self) -> None:
        """Make `wake` readable."""
        self._waker.send(b"!")

    def _play(self, pieces: Sequence[bytes], ends: bool) -> None:
        with contextlib.suppress(OSError):  # the reader has given up
            for piece in pieces:
                self._backend.sendall(piece)
                while self._unreceived() and not self._stopped:
                    time.sleep(0.00002)
            if ends:
                self.end()

    def _unreceived(self) -> int:
        count = array.array("i", [0])
        fcntl.ioctl(self._frontend, termios.FIONREAD, count)
        return count[0]


def split(data: bytes, places: Iterator[int] | Sequence[int]) -> list[bytes]:
    """Return the data in pieces that end at these places, in ascending order."""
    edges = [0, *places, len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges) if end > start]
