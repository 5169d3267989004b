"""The open connections of a worker that nothing uses now: kept for the next session, closed when others need room.

The database and its roles have limits of connections, which all workers share. Connections that a burst of requests has
left must not keep another worker from opening one. So those that are not needed for a while are closed, and all of them
as soon as another worker finds no connection free.
"""

from __future__ import annotations

import asyncio

from server.postgres.connection import Connection
from server.postgres.sessions_of_workers import SessionsOfWorkers

# Seconds after which a connection that nothing uses is closed, except the one that was used last.
UNUSED_SECONDS = 60.0
# Seconds until a worker notices that another one asks for room, while it has unused connections.
LOOK_SECONDS = 0.5


class UnusedConnections:
    """Those of one worker, for one event loop. Kinds of work do not use each other's."""

    def __init__(self, workers: SessionsOfWorkers | None = None) -> None:
        """workers: None if this worker is alone."""
        self._workers = workers
        self._asked = 0 if workers is None else workers.last_asked()
        # The newest last, each with the time since when it is unused.
        self._kept: dict[str, list[tuple[Connection, float]]] = {}
        self._next_look: asyncio.TimerHandle | None = None

    def put(self, connection: Connection, kind: str, *, most: int) -> bool:
        """Keep a connection for the next session of this kind. Return False if there are `most` of them already."""
        if self._asked_for():
            self.close_all()
            return False
        kept = self._kept.setdefault(kind, [])
        if len(kept) >= most:
            return False
        loop = asyncio.get_running_loop()
        kept.append((connection, loop.time()))
        if self._next_look is None:
            self._next_look = loop.call_later(LOOK_SECONDS, self._look)
        self._mark()
        return True

    def take(self, kind: str) -> Connection | None:
        """Return the connection of this kind that was used last and is still open, None if there is none."""
        kept = self._kept.get(kind, [])
        while kept:
            connection, _ = kept.pop()
            self._mark()
            if not connection.closed:
                if connection.still_open():
                    return connection
                connection.close()
        return None

    def close_all(self) -> bool:
        """Close all of them. Return whether there were any."""
        found = [connection for kept in self._kept.values() for connection, _ in kept]
        self._kept.clear()
        for connection in found:
            connection.close()
        self._mark()
        return bool(found)

    def make_room(self) -> bool:
        """Close all, and ask the other workers to do so. Return whether the database may have room for another soon."""
        closed = self.close_all()
        asked = self._workers is not None and self._workers.ask_for_unused()
        if self._workers is not None:
            self._asked = self._workers.last_asked()
        return closed or asked

    def stop(self) -> None:
        """Close all, and look no more."""
        self.close_all()
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _look(self) -> None:
        """Close those that are not needed, or all of them if another worker asks for room. Called by the event loop."""
        self._next_look = None
        loop = asyncio.get_running_loop()
        if self._asked_for():
            self.close_all()
        for kept in self._kept.values():
            while len(kept) > 1 and kept[0][1] <= loop.time() - UNUSED_SECONDS:
                kept.pop(0)[0].close()
        if any(self._kept.values()):
            self._next_look = loop.call_later(LOOK_SECONDS, self._look)

    def _asked_for(self) -> bool:
        """Return whether another worker has asked for room since this was called last."""
        before, self._asked = self._asked, self._workers.last_asked() if self._workers is not None else 0
        return self._asked != before

    def _mark(self) -> None:
        if self._workers is not None:
            self._workers.mark_unused(any(self._kept.values()))
