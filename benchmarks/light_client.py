"""A client that takes little CPU: plain sockets, one request at a time on each kept-alive connection.

It reads chunked responses (RFC 9112, 7.1) up to the last chunk without looking at what lies between.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Sequence
from types import TracebackType

from benchmarks.processes import BenchmarkError

# Longest wait for a response.
SECONDS = 60.0
_RECEIVED_BYTES = 65536
_LAST_CHUNK = b"\r\n0\r\n\r\n"


class Connection:
    """One connection to a server on this machine, as a context manager. port: of the server. target: what it asks."""

    def __init__(self, port: int, target: str) -> None:
        self._request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        self._received = b""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def ask(self) -> None:
        """Send the request."""
        self._received = b""
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Receive what there is. Return whether the response is complete. Raise BenchmarkError if it is an error."""
        data = self.socket.recv(_RECEIVED_BYTES)
        self._received += data
        if not data or not self._received.startswith(b"HTTP/1.1 200 "[: len(self._received)]):
            raise BenchmarkError(f"the answer to {self._request!r} is {self._received[:300]!r}")
        return self._received.endswith(_LAST_CHUNK)

    def response(self) -> bytes:
        """Ask, wait, and return the response with its headers and the frames of its chunks."""
        self.ask()
        while not self.receive():
            pass
        return self._received


def body(response: bytes) -> bytes:
    """Return the body of a complete response, without the frames of its chunks."""
    _, _, rest = response.partition(b"\r\n\r\n")
    found = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        found += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return found


def answer_all(connections: Sequence[Connection], requests: int) -> float:
    """Ask so many times in all, on all connections at once. Return the seconds until the last response."""
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        began = time.perf_counter()
        for connection in connections:
            connection.ask()
        asked, answered = len(connections), 0
        while answered < requests:
            ready = selector.select(SECONDS)
            if not ready:
                raise BenchmarkError(f"no response within {SECONDS:.0f} s")
            for key, _ in ready:
                if key.data.receive():
                    answered += 1
                    if asked < requests:
                        key.data.ask()
                        asked += 1
        return time.perf_counter() - began
