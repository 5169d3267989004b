"""The bytes of one open connection, with or without TLS. Never blocks and knows no messages."""

from __future__ import annotations

import ctypes
import os

from server.postgres import tls

# Bytes of one read in Python. The native encoder has a buffer of its own.
RECEIVE_BYTES = 64 << 10


class Wire:
    """The socket of a connection that libpq has opened. libpq neither reads from it nor writes to it any more.

    descriptor: of the socket, in non-blocking mode. ssl: the address of OpenSSL's SSL object, 0 without TLS.
    """

    __slots__ = ("_buffer", "_bytes", "descriptor", "ssl")

    def __init__(self, descriptor: int, ssl: int = 0) -> None:
        self.descriptor = descriptor
        self.ssl = ssl
        self._buffer = ctypes.create_string_buffer(RECEIVE_BYTES)
        self._bytes = memoryview(self._buffer).cast("B")

    def receive(self) -> bytes | None:
        """Return bytes that have arrived; None if there are none, b"" at the end of the connection. Raise OSError."""
        try:
            if not self.ssl:
                # A bytes object of RECEIVE_BYTES that is made smaller afterwards may leave a hole in the memory.
                return self._bytes[: os.readv(self.descriptor, (self._bytes,))].tobytes()
            # The call that finds nothing has emptied OpenSSL's own buffer, so it is right to wait for the socket then.
            return self._bytes[: tls.receive(self.ssl, self._buffer)].tobytes()
        except BlockingIOError:
            return None

    def send(self, data: bytes) -> int:
        """Return how many bytes of the data the kernel has taken, 0 if it takes none now. Raise OSError."""
        try:
            return tls.send(self.ssl, data) if self.ssl else os.write(self.descriptor, data)
        except BlockingIOError:
            return 0
