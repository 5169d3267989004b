"""The protocol of one connection, counted among `Connections`. Uses private parts of aiohttp.

Private are `RequestHandler._waiter`, which tells whether a request is being handled, `._request_count`, the number of
heads that are complete, and `._max_msg_queue_size` and `._msg_queue_resume_size`, the number of requests that may wait
behind the one that is handled. tests/http/test_aiohttp_internals.py fails if they change.
"""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web

from server.http.connections import HEAD_SECONDS, Connections
from server.http.stall import unacknowledged

# Requests that a client may send ahead of the answers: reading pauses with the first of these, resumes with the second.
MOST_AHEAD, RESUME_AHEAD = 4, 2
# Bytes that the system holds of what a client sends, about as many as are read at once: the 256 kB that the event loop
# would read take 40 ms if they are chunks of one byte.
RECEIVE_BUFFER = 16 << 10
# The time without progress after which a connection is closed, as a multiple of STALL_TIMEOUT: what is sent has limits
# of its own, which tell why.
STALL_FACTOR = 1.5


class CountedHandler(web.RequestHandler):
    """The protocol of one connection. client: as of `Connection`."""

    __slots__ = ("_connection", "_connections", "_head_bytes", "_held", "_held_since", "client", "waits_since")

    def __init__(self, manager: web.Server, *, connections: Connections | None = None, **options: Any) -> None:
        """connections: those to count this one among; None to count none. options: of aiohttp's own class."""
        super().__init__(manager, **options)
        self._max_msg_queue_size, self._msg_queue_resume_size = MOST_AHEAD, RESUME_AHEAD
        self._connections = connections
        self._connection: asyncio.Transport | None = None
        self._head_bytes = 0
        self._held, self._held_since = 0, 0.0
        self.client: str | None = None
        self.waits_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection, or refuse it. Called by the event loop."""
        if self._connections is not None:
            peer = transport.get_extra_info("peername")
            self.client = self._connections.client_of(peer[0]) if isinstance(peer, tuple) else None
            self._connection = cast("asyncio.Transport", transport)
            opened = transport.get_extra_info("socket")
            if opened is not None:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self.waits_since = asyncio.get_running_loop().time()
            if not self._connections.add(self, self.waits_since):
                self.force_close()
                self._answer(503, "too_many_connections", "The server has too many connections.")
                return
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Count the connection no more. Called by the event loop."""
        if self._connections is not None:
            self._connections.remove(self)
        self._connection = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of an incomplete head. Called by the event loop."""
        heads = self._request_count
        if self.waits and self._connections is not None:
            if not self._head_bytes:
                self.waits_since = asyncio.get_running_loop().time()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._request_count != heads:
            self._head_bytes = 0
        elif self._connections is not None and self._head_bytes > self._connections.limits.head_bytes:
            self._answer(431, "head_too_long", "The headers of the request are too long.")

    @property
    def waits(self) -> bool:
        """As of `Connection`."""
        return self._waiter is not None and not self._waiter.done()

    def is_late(self, now: float) -> bool:
        """As of `Connection`."""
        if self.waits:
            incomplete = self._head_bytes > 0 or self._request_count == 0
            return incomplete and now - self.waits_since > HEAD_SECONDS
        assert self._connections is not None
        held, limit = unacknowledged(self._connection), self._connections.limits.stall_timeout * STALL_FACTOR
        if not held or held != self._held:
            self._held, self._held_since = held, now
        return limit > 0 and now - self._held_since > limit

    def end(self, *, late: bool) -> None:
        """As of `Connection`."""
        if late and self.waits and self._head_bytes:
            self._answer(408, "request_timeout", "The request did not arrive in time.")
        elif self._connection is not None:
            self._connection.abort()

    def _answer(self, status: int, code: str, detail: str) -> None:
        """Answer in place of the application, and close the connection."""
        if self._connection is not None and not self._connection.is_closing():
            self._connection.write(refusal(status, code, detail))
            self.close()
            self._connection.close()


def refusal(status: int, code: str, detail: str) -> bytes:
    """Return a whole response with a problem document, for a client that has sent no request."""
    id = uuid.uuid4().hex
    title = HTTPStatus(status).phrase
    document = {"type": "about:blank", "title": title, "status": status, "detail": detail, "code": code}
    body = json.dumps({**document, "requestId": id}).encode()
    head = [
        f"HTTP/1.1 {status} {title}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "Retry-After: 5",
        f"X-Request-Id: {id}",
        "X-Content-Type-Options: nosniff",
        "Cross-Origin-Resource-Policy: same-origin",
        "Server: sluice",
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body
