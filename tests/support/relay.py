"""Bytes between two sockets, copied in threads: recorded on one way, or from a TCP port to a Unix socket."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


class Relay:
    """Copies between a server's descriptor and a socket until `stop`. recorded: gets what the server sends."""

    def __init__(self, server: int, client: socket.socket, recorded: bytearray) -> None:
        self._server, self._client, self._recorded = server, client, recorded
        self._ended, self._end = socket.socketpair()
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop copying."""
        self._end.close()
        self._thread.join(10)
        self._ended.close()

    def _copy(self) -> None:
        watched: list[int | socket.socket] = [self._server, self._client, self._ended]
        while True:
            ready, _, _ = select.select(watched, [], [])
            if self._ended in ready:
                return
            if self._server in ready:
                data = os.read(self._server, 65536)
                self._recorded += data
                self._client.sendall(data)
            if self._client in ready:
                data = self._client.recv(65536)
                while data:
                    data = data[os.write(self._server, data) :]


@contextlib.contextmanager
def forwarded(path: Path) -> Iterator[int]:
    """Listen on a port of 127.0.0.1 that leads to this Unix socket, for a program that runs as another user."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):  # the end of the test
                while True:
                    client, _ = listening.accept()
                    threading.Thread(target=_forward, args=(client, path), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def _forward(client: socket.socket, path: Path) -> None:
    with client, socket.socket(socket.AF_UNIX) as server, contextlib.suppress(OSError):
        server.connect(str(path))
        while True:
            ready, _, _ = select.select([client, server], [], [])
            for source, target in ((client, server), (server, client)):
                if source in ready:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    target.sendall(data)
