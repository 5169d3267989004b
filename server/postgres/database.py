"""The database as the routes see it: sessions within limits, the catalogue, and cancelling.

Bounds how many sessions there are, and ends each so that nothing runs on in the server. Runs no SQL of its own
but what cancels.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Coroutine, Iterator
from types import TracebackType
from typing import Any

from server import errors
from server.events import emit
from server.postgres.connections import Connections
from server.postgres.events import ConnectionsLeftOpen, StatementNotCancelled
from server.postgres.session import CONTROL_TIMEOUT, Session
from server.query import catalogue
from server.settings import Settings
from server.threads import Threads

# Connections kept for the catalogue, health checks and cancelling, so that a full house of exports cannot
# keep those from working.
CONTROL_CONNECTIONS = 2
# Downloads at once that can have all the readers they may; more of them share.
EXPORTS_WITH_READERS = 2
# Seconds that closing waits for sessions to end. Less than what is left of serve.STOP_MARGIN when HTTP has stopped,
# after which the worker is killed.
CLOSE_TIMEOUT = 4.0
# Seconds to wait for a control connection.
CONTROL_WAIT = 3.0


def reading_connections(settings: Settings) -> int:
    """Return how many connections of one worker may read rows at once."""
    return settings.max_concurrent_exports + _spare_readers(settings)


def _spare_readers(settings: Settings) -> int:
    # Beside the exports' own connections, so that no export's readers can keep another from beginning.
    return (settings.most_readers - 1) * EXPORTS_WITH_READERS


class Database:
    """The connections of one worker process. Open it after the fork, on the loop that uses it."""

    def __init__(self, settings: Settings, threads: Threads) -> None:
        self._schemas = settings.export_schemas
        self._statement_timeout = settings.statement_timeout
        # A client may pause for STALL_TIMEOUT between two FETCHes; past that Sluice itself has hung.
        self._idle_timeout = settings.stall_timeout + 60.0 if settings.stall_timeout else 0.0
        self._export_slots = asyncio.Semaphore(settings.max_concurrent_exports)
        self._control_slots = asyncio.Semaphore(CONTROL_CONNECTIONS)
        self.most_readers = settings.most_readers
        self._spare_readers = _spare_readers(settings)
        most_idle = reading_connections(settings) + CONTROL_CONNECTIONS
        self._connections = Connections(settings.dsn, most_idle, threads.names)
        self._threads = threads.rows
        # Done when the session is left, from when on its `_finish` is in the background.
        self._sessions: dict[Session, asyncio.Future[None]] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Database:
        # No connection yet: a database that is away must not keep the server from starting.
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for session in self._sessions:
            session.stop()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._all_ended()
        finally:
            for task in self._background:
                task.cancel()
            if left := self._connections.close():
                emit(ConnectionsLeftOpen(count=left))

    async def _all_ended(self) -> None:
        while unfinished := [*self._sessions.values(), *self._background]:  # one may start another
            await asyncio.wait(unfinished)

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A session for one export. Raises ServerBusy, DatabaseUnavailable.

        On leaving, the connection goes back to the pool; if a statement is still running it is thrown away
        and the statement is cancelled in the server, without waiting for that.
        """
        if self._export_slots.locked():
            raise errors.ServerBusy(
                "All downloads that this server runs at once are taken.", hint="Try again in a few seconds."
            )
        async with self._export_slots, self._transaction(self._statement_timeout) as session:
            yield session

    @contextlib.asynccontextmanager
    async def control_session(self) -> AsyncIterator[Session]:
        """A session for the catalogue and for health, beside the exports' slots, with a short timeout."""
        try:
            async with asyncio.timeout(CONTROL_WAIT):
                await self._control_slots.acquire()
        except TimeoutError:
            raise errors.ServerBusy("The catalogue is busy.", hint="Try again in a few seconds.") from None
        try:
            async with self._transaction(CONTROL_TIMEOUT) as session:
                yield session
        finally:
            self._control_slots.release()

    @contextlib.contextmanager
    def spare_readers(self, wanted: int) -> Iterator[int]:
        """How many readers an export may have beside its first, at most `wanted`; given back on leaving."""
        given = max(0, min(wanted, self._spare_readers))
        self._spare_readers -= given
        try:
            yield given
        finally:
            self._spare_readers += given

    @contextlib.asynccontextmanager
    async def reader_session(self, snapshot: str) -> AsyncIterator[Session]:
        """A session that sees what the one sees that exported this snapshot. To be used within `spare_readers`."""
        async with self._transaction(self._statement_timeout, snapshot) as session:
            yield session

    async def relations(self) -> list[catalogue.Relation]:
        """All relations that may be exported."""
        async with self.control_session() as session:
            rows = await session.query(catalogue.LIST_RELATIONS, {"schemas": list(self._schemas)})
        return [catalogue.relation_from_row(row) for row in rows]

    async def ping(self) -> None:
        """Whether exports can work now: opens a transaction. Raises DatabaseUnavailable and others."""
        async with self.control_session():
            pass

    @contextlib.asynccontextmanager
    async def _transaction(self, statement_timeout: float, snapshot: str | None = None) -> AsyncIterator[Session]:
        connection = await self._connections.acquire()
        session = Session(connection, statement_timeout, self._schemas, self._threads)
        self._sessions[session] = asyncio.get_running_loop().create_future()
        try:
            await session.begin(self._session_settings(statement_timeout), snapshot)
            yield session
        finally:
            # In a task of its own: a client that leaves after the last byte cancels this task, which must not cost the
            # connection, since it only has to ROLLBACK.
            finishing = self._in_background(self._finish(session))
            self._sessions.pop(session).set_result(None)
            await asyncio.shield(finishing)

    async def _finish(self, session: Session) -> None:
        self._connections.release(session.connection, reusable=await session.end())
        if session.statement_left_running and session.backend_pid:
            self._in_background(self._cancel(session.backend_pid, session.snapshot_at))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _session_settings(self, statement_timeout: float) -> dict[str, str]:
        return {
            # The bytes must not depend on the settings of the server or the role.
            "datestyle": "ISO, MDY",
            "intervalstyle": "postgres",
            "bytea_output": "hex",
            "extra_float_digits": "1",
            "quote_all_identifiers": "off",
            "synchronize_seqscans": "off",
            # All rows are wanted: without this the planner aims at the first tenth of them.
            "cursor_tuple_fraction": "1.0",
            "jit": "off",
            # The driver keeps every notice, for nobody.
            "client_min_messages": "error",
            "statement_timeout": f"{round(statement_timeout * 1000)}ms",
            "idle_in_transaction_session_timeout": f"{round(self._idle_timeout * 1000)}ms",
        }

    async def _cancel(self, backend_pid: int, snapshot_at: datetime.datetime | None) -> None:
        """Cancel the statement of a transaction in the server, over another connection.

        The start of the transaction tells it from one that a pooler runs on the same backend by then.
        """
        try:
            # Without a slot: a catalogue that waits for somebody's lock must not keep a query running.
            async with self._transaction(CONTROL_TIMEOUT) as session:
                await session.query(
                    "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
                    "WHERE pid = %(pid)s AND xact_start = %(start)s",
                    {"pid": backend_pid, "start": snapshot_at},
                )
        except errors.ExportError as error:
            emit(StatementNotCancelled(pid=backend_pid, reason=error.detail))
