"""HTTP over a raw socket: the bytes that a client receives, their framing, and how they end.

Client libraries hide chunk boundaries, a missing terminating chunk and a reset.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

from tests.support.live_server import HOST, LiveServer

# How a body ended. terminator: with the last chunk. length: after Content-Length bytes. none: there is no body. closed:
# with a clean end of the connection. reset: with ECONNRESET.
Ending = Literal["terminator", "length", "none", "closed", "reset"]


@dataclass(frozen=True)
class Answer:
    """One response. head: as received. headers: by name in lower case. body: decoded, as far as it was received."""

    status: int
    head: bytes = field(repr=False)
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    ending: Ending

    def problem(self) -> dict[str, Any]:
        """Return the problem document (RFC 9457) that every error must have."""
        assert self.headers["content-type"].partition(";")[0] == "application/problem+json", self
        document: dict[str, Any] = json.loads(self.body)
        assert {"type", "title", "status", "detail", "code", "requestId"} <= set(document)
        assert document["status"] == self.status
        assert document["requestId"] == self.headers["x-request-id"]
        return document


class Client:
    """One connection to a server, for one request or for several in sequence."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._received = bytearray()
        self._reset = False

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(
        self,
        path: str,
        *,
        method: str = "GET",
        http: str = "1.1",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Send a request. The path, the headers and the body are not changed."""
        lines = [f"{method} {path} HTTP/{http}"]
        lines += [f"{name}: {value}" for name, value in {"Host": HOST, **(headers or {})}.items()]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

    def ask(
        self, path: str, *, method: str = "GET", http: str = "1.1", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send a request and return its response."""
        self.send(path, method=method, http=http, headers=headers)
        return self.read(method=method)

    def read(self, *, method: str = "GET") -> Answer:
        """Return the next response, complete or as far as it is received. Raise ConnectionError if its head is not."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if not self.receive():
                raise ConnectionError(f"no response but {bytes(self._received)!r}")
        head = self._take(end + 4)
        status_line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        headers: dict[str, str] = {}
        for name, _, value in (line.partition(":") for line in lines):
            assert name.lower() not in headers, f"the header {name} is repeated"
            headers[name.lower()] = value.strip()
        status = int(status_line.split(" ")[1])
        if status == 100:  # the response follows (RFC 9110, 15.2)
            return self.read(method=method)
        body, ending = self._body(headers, empty=method == "HEAD" or status in (204, 304))
        return Answer(status, head, headers, body, ending)

    def receive(self, most: int = 1 << 18) -> bool:
        """Receive the next bytes, at most so many. Return whether there were any."""
        try:
            data = self.socket.recv(most)
        except ConnectionResetError:
            self._reset = True
            return False
        self._received += data
        return bool(data)

    def nothing_more(self) -> bool:
        """Return whether all bytes that were received belong to the responses read so far."""
        return not self._received

    def _body(self, headers: Mapping[str, str], *, empty: bool) -> tuple[bytes, Ending]:
        if empty:
            return b"", "none"
        if headers.get("transfer-encoding") == "chunked":
            return self._chunks()
        if "content-length" in headers:
            length = int(headers["content-length"])
            body = self._take(length)
            return body, "length" if len(body) == length else self._end()
        while self.receive():
            pass
        return self._take(len(self._received)), self._end()

    def _chunks(self) -> tuple[bytes, Ending]:
        """Read a chunked body (RFC 9112, 7.1) without extensions and trailers."""
        body = bytearray()
        while True:
            while (end := self._received.find(b"\r\n")) < 0:
                if not self.receive():
                    return bytes(body), self._end()
            size = int(self._take(end + 2), 16)
            data = self._take(size)
            body += data
            after = self._take(2)
            if len(data) < size or len(after) < 2:
                return bytes(body), self._end()
            assert after == b"\r\n", after
            if size == 0:
                return bytes(body), "terminator"

    def _take(self, count: int) -> bytes:
        while len(self._received) < count and self.receive():
            pass
        taken = bytes(self._received[:count])
        del self._received[:count]
        return taken

    def _end(self) -> Ending:
        return "reset" if self._reset else "closed"


def ask(
    server: LiveServer,
    path: str,
    *,
    method: str = "GET",
    http: str = "1.1",
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send a request on a connection of its own and return the response."""
    with Client(server.connect()) as client:
        return client.ask(path, method=method, http=http, headers=headers)
