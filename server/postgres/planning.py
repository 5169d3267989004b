"""The limit of the time that PostgreSQL may plan a query.

A regular expression of twenty characters can take the planner half a minute. A time-out of the server does not help:
the statement that is planned also waits for locks, which may take longer. So a statement that takes long is looked at
over another connection, and cancelled if it does not wait for a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Protocol

from server import errors

# Seconds that a relation may take by itself, with thousands of partitions or dozens of joins. Or PLAN_TIMEOUT, if that
# is longer.
RELATION_SECONDS = 10.0
# Seconds after which the connection of a cancelled statement is closed. PostgreSQL ends most of them in milliseconds.
CANCEL_SECONDS = 0.5


class Planned(Protocol):
    """The session whose statement is planned: see `session.Session`."""

    backend_pid: int
    snapshot_at: datetime.datetime | None

    def abandon(self) -> None: ...


class OtherConnections(Protocol):
    """What looks at a statement from outside: see `database.Database`."""

    async def waits_for_lock(self, backend_pid: int, snapshot_at: datetime.datetime) -> bool: ...

    async def cancel(self, backend_pid: int, snapshot_at: datetime.datetime) -> None: ...

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class PlanningLimit:
    """The limit of all sessions of a worker."""

    def __init__(self, seconds: float, others: OtherConnections) -> None:
        """seconds: 0 for no limit."""
        self._seconds = seconds
        self._others = others

    @contextlib.asynccontextmanager
    async def planning(self, session: Planned, *, relation_alone: bool) -> AsyncIterator[None]:
        """Bound the time that the statement in the block is planned, without its waits for locks.

        relation_alone: the request adds nothing that could take long. After a wait for a lock, only half of the time
        may be left. Raise PlanTimeout at the limit; the connection of the session cannot be used any more then.
        """
        seconds = max(self._seconds, RELATION_SECONDS) if relation_alone else self._seconds
        if not self._seconds:
            yield
            return
        watch = _Watch(session, seconds, self._others)
        begin = asyncio.get_running_loop().call_later(seconds / 2, watch.begin)
        try:
            yield
        except (errors.QueryCancelled, errors.ConnectionLost):
            if not watch.cancels:
                raise
        finally:
            begin.cancel()
            watch.end()
            if watch.cancels:  # perhaps too late for this statement, but a later one could be hit
                session.abandon()
        if watch.cancels:
            raise timed_out(seconds)


def timed_out(seconds: float) -> errors.PlanTimeout:
    """Return the error for a query that PostgreSQL has not planned within these seconds."""
    error = errors.PlanTimeout(
        f"PostgreSQL needs more than {seconds:g} seconds to plan this query.",
        hint="If it is the relation that needs so long, ask the operator to raise PLAN_TIMEOUT.",
    )
    error.seconds = seconds
    return error


class _Watch:
    """Looks at one statement. cancels: whether it has begun to cancel it."""

    def __init__(self, session: Planned, seconds: float, others: OtherConnections) -> None:
        self._session = session
        self._pause = seconds / 2
        self._others = others
        self._task: asyncio.Task[None] | None = None
        self._sleeps = False
        self._ended = False
        self.cancels = False

    def begin(self) -> None:
        self._task = self._others.in_background(self._watch())

    def end(self) -> None:
        self._ended = True
        if self._task is not None and self._sleeps:  # a query of the other connection ends by itself
            self._task.cancel()

    async def _watch(self) -> None:
        pid, snapshot_at = self._session.backend_pid, self._session.snapshot_at
        if snapshot_at is None:  # the transaction is not open: nothing is planned
            return
        planned = False  # at the last look
        while True:
            waits = await self._others.waits_for_lock(pid, snapshot_at)
            if self._ended:
                return
            if planned and not waits:
                break
            planned = not waits
            await self._sleep(self._pause)
        self.cancels = True
        await self._others.cancel(pid, snapshot_at)
        if not self._ended:
            await self._sleep(CANCEL_SECONDS)
            self._session.abandon()

    async def _sleep(self, seconds: float) -> None:
        self._sleeps = True
        await asyncio.sleep(seconds)
        self._sleeps = False
