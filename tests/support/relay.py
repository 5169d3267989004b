"""Bytes between two sockets, copied in a thread and recorded on one way."""

from __future__ import annotations

import os
import select
import socket
import threading


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
