"""The connections of clients to this process: how many there may be, how long each may wait, and which one has to go.

A connection waits while it sends no complete request: it is idle, or the bytes of a request drip in. At a limit, those
that have waited longest are closed to make room. Only if every connection is at work, the new one is refused. Knows no
HTTP library: `aiohttp_connections.py` gives it the connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import resource
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from server.errors import TooManyStreams
from server.events import emit
from server.http.events import ConnectionsClosed
from server.threads import cancel_and_wait

# Seconds in which the head of a request (request line and headers) has to arrive, from its first byte, or from the
# opening of the connection.
HEAD_SECONDS = 20.0
# Descriptors that are kept for files of the server's own, PostgreSQL, saved exports and listening sockets, and how many
# a connection may need: a download of a saved export has its socket twice, and the file.
RESERVED_DESCRIPTORS, DESCRIPTORS_EACH = 128, 3
# Connections for which there is always room, however few files may be open.
FEWEST_CONNECTIONS = 10
# The share of the connections that is closed at once at the limit, so that not every new one looks at all.
_CLOSED_SHARE = 0.05
# Seconds between two looks for connections that are late, and between two log lines about those that had to go.
LOOK_SECONDS, _LOG_SECONDS = 1.0, 60.0


class Connection(Protocol):
    """A connection. Equal only to itself."""

    @property
    def waits(self) -> bool:
        """Whether no request is being handled: it is idle, or a head is incomplete."""

    @property
    def waits_since(self) -> float:
        """When it began to wait, in the time of the event loop: it was opened, answered, or sent a part of a head."""

    @property
    def client(self) -> str | None:
        """The client that its address counts for, or None if it counts for none."""

    def is_late(self, now: float) -> bool:
        """Return whether a head has not arrived in HEAD_SECONDS, or the client has stopped taking a response."""

    def end(self, *, late: bool) -> None:
        """Close the connection at once. late: say so to the client, if it has sent a part of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits on connections.

    most, most_per_client: in all and of one client. head_bytes: of one request line with its headers. stall_timeout:
    seconds in which a client has to take something of a response; 0 for no limit.
    """

    most: int
    most_per_client: int
    head_bytes: int
    stall_timeout: float


def room_for_connections(reserved: int) -> int:
    """Return how many connections the process can have within its limit of open files.

    reserved: descriptors for other purposes, in addition to RESERVED_DESCRIPTORS.
    """
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if descriptors == resource.RLIM_INFINITY:
        return sys.maxsize
    return max((descriptors - RESERVED_DESCRIPTORS - reserved) // DESCRIPTORS_EACH, FEWEST_CONNECTIONS)


class Connections:
    """The open connections and event streams."""

    def __init__(self, limits: Limits, trusts: Callable[[str], bool] = lambda address: False) -> None:
        """trusts: whether an address is that of a trusted proxy, which stands for any number of clients."""
        self.limits = limits
        self._trusts = trusts
        self._open: dict[Connection, None] = {}
        self._by_client: dict[str, dict[Connection, None]] = {}
        self._streams: Counter[str | None] = Counter()
        # How many have been closed and refused since the last log line, and when that was.
        self._closed = self._refused = 0
        self._logged = float("-inf")

    def __len__(self) -> int:
        return len(self._open)

    def client_of(self, address: str) -> str | None:
        """Return the client that an address counts for: itself, of IPv6 its /64 network, which is what one site has.

        Return None for addresses of this machine, a Unix socket, and trusted proxies: others may be behind them.
        """
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return None
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        if parsed.is_loopback or self._trusts(str(parsed)):
            return None
        if isinstance(parsed, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((parsed, 64), strict=False))
        return str(parsed)

    def add(self, connection: Connection, now: float) -> bool:
        """Add a new connection and close others if there are too many. Return whether there is room for it."""
        client = connection.client
        mine = {} if client is None else self._by_client.setdefault(client, {})
        room = self._make_room(mine, self.limits.most_per_client) and self._make_room(self._open, self.limits.most)
        if room:
            self._open[connection] = None
            mine[connection] = None
        else:
            self._refused += 1
        if client is not None and not mine:
            del self._by_client[client]
        self._log(now)
        return room

    def remove(self, connection: Connection) -> None:
        """Remove a connection that has ended; do nothing if it was not added."""
        self._open.pop(connection, None)
        mine = self._by_client.get(connection.client or "")
        if mine is not None:
            mine.pop(connection, None)
            if not mine:
                del self._by_client[connection.client or ""]

    def _make_room(self, among: dict[Connection, None], most: int) -> bool:
        """Close the connections that have waited longest if there are `most`. Return whether there are fewer now."""
        if len(among) < most:
            return True
        waiting = sorted((each for each in among if each.waits), key=lambda each: each.waits_since)
        for each in waiting[: max(1, int(most * _CLOSED_SHARE))]:
            self._closed += 1
            self.remove(each)
            each.end(late=False)
        return len(among) < most

    def close_late(self, now: float) -> None:
        """Close the connections whose requests have not arrived in time, and log how many had to go."""
        for each in [each for each in self._open if each.is_late(now)]:
            each.end(late=True)
        self._log(now)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Close the connections that are late while the block runs."""
        clock = asyncio.get_running_loop().time

        async def look_again_and_again() -> None:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                self.close_late(clock())

        looking = asyncio.create_task(look_again_and_again())
        try:
            yield
        finally:
            await cancel_and_wait(looking)

    def _log(self, now: float) -> None:
        if (self._closed or self._refused) and now - self._logged > _LOG_SECONDS:
            emit(ConnectionsClosed(open=len(self._open), closed=self._closed, refused=self._refused))
            self._closed = self._refused = 0
            self._logged = now

    @contextlib.contextmanager
    def stream(self, client: str | None) -> Iterator[None]:
        """Count an event stream of this client while the block runs. Raise TooManyStreams.

        client: None if it counts for none. Streams take at most half of the connections, in all and of a client.
        """
        if self._streams.total() >= self.limits.most // 2:
            raise too_many_streams("all clients together")
        if client is not None and self._streams[client] >= self.limits.most_per_client // 2:
            raise too_many_streams("one client")
        self._streams[client] += 1
        try:
            yield
        finally:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]


def too_many_streams(whose: str) -> TooManyStreams:
    """Return the error for an event stream too many. whose: whose streams are too many."""
    return TooManyStreams(
        f"Too many event streams of {whose} are open.",
        hint="Close some of them, or ask GET /exports/{id} now and then instead.",
    )
