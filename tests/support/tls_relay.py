"""A TCP relay before a PostgreSQL that speaks TLS: it cuts a connection inside a record, or delivers odd pieces.

It has no key: it sees the headers of the records and nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

# Bytes of a record's header: its type, two of the version, two of the length of the rest (RFC 8446, 5.1).
HEADER = 5
# Most bytes of an odd piece.
LARGEST_PIECE = 20
# Seconds after an odd piece, so that the other side receives most of them one by one.
BETWEEN_PIECES = 0.0002
# SO_LINGER with a time of 0: closing resets the connection.
RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Cut:
    """Where a connection ends.

    records: how many the client receives whole. rest: bytes that it receives of the next one. reset: end the connection
    with a reset instead of a normal close.
    """

    records: int
    rest: int
    reset: bool = False


class Records:
    """The bytes from the server, divided into the answer to SSLRequest, one byte, and TLS records."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answered = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Add bytes, and yield what is complete."""
        self._buffer += data
        while len(self._buffer) >= self._length():
            length = self._length()
            yield bytes(self._buffer[:length])
            del self._buffer[:length]
            self._answered = True

    def _length(self) -> int:
        if not self._answered:
            return 1
        if len(self._buffer) < HEADER:
            return HEADER
        return HEADER + int.from_bytes(self._buffer[3:HEADER], "big")


class Relay:
    """A relay from a port of its own on 127.0.0.1 to another one, as a context manager.

    port: the port it listens on. cut: where the next connection that gets so far ends; None once one has ended there.
    """

    def __init__(self, to: int, *, pieces: bool = False) -> None:
        """to: the port of the server. pieces: deliver all bytes in odd pieces, regardless of the records."""
        self._to = to
        self._pieces = pieces
        self._open: set[socket.socket] = set()
        self._received: dict[socket.socket, int] = {}
        self._lock = threading.Lock()
        self.cut: Cut | None = None

    def __enter__(self) -> Relay:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Ends `accept` and every `select`; the threads close the sockets.
        with self._lock:
            for each in (self._listening, *self._open):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def cut_next(self, cut: Cut) -> None:
        """Cut a connection, once. Only records from now on count."""
        with self._lock:
            self._received.clear()
            self.cut = cut

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the end of the test
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as server:
            for each in (client, server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            try:
                self._relay(client, server)
            finally:
                with self._lock:
                    self._open -= {client, server}
                    self._received.pop(client, None)

    def _relay(self, client: socket.socket, server: socket.socket) -> None:
        records = Records()
        sizes = random.Random(14)
        while True:
            ready, _, _ = select.select([client, server], [], [])
            for source, target in ((client, server), (server, client)):
                if source not in ready:
                    continue
                data = source.recv(1 << 16)
                if not data:
                    return
                if self._pieces:
                    _send_pieces(target, data, sizes)
                elif source is client:
                    server.sendall(data)
                elif not all(self._deliver(client, record) for record in records.feed(data)):
                    return

    def _deliver(self, client: socket.socket, record: bytes) -> bool:
        """Send a record to the client. Return False if the connection ends here."""
        with self._lock:
            cut = self.cut
            received = self._received.get(client, 0)
            self._received[client] = received + 1
            if cut is not None and received == cut.records:
                self.cut = None
            else:
                cut = None
        if cut is None:
            client.sendall(record)
            return True
        client.sendall(record[: cut.rest])
        if cut.reset:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return False


def _send_pieces(target: socket.socket, data: bytes, sizes: random.Random) -> None:
    ends = itertools.accumulate(iter(lambda: sizes.randint(1, LARGEST_PIECE), 0))
    start = 0
    while start < len(data):
        end = next(ends)
        target.sendall(data[start:end])
        start = end
        time.sleep(BETWEEN_PIECES)
