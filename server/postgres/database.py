"""The database as the rest of Sluice uses it: sessions within limits, the list of relations, and cancellation.

Limits how many sessions there are, and ends each of them so that no statement of it continues in the server. The SQL is
in `statements.py` and `query/catalogue.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from server import errors
from server.events import emit
from server.postgres import statements
from server.postgres.connections import Connections
from server.postgres.events import ConnectionsLeftOpen, StatementNotCancelled
from server.postgres.planning import PlanningLimit
from server.postgres.session import CONTROL_TIMEOUT, Session
from server.postgres.sessions_of_workers import SessionsOfWorkers
from server.postgres.slots import Slots
from server.postgres.spare_readers import SpareReader, SpareReaders
from server.postgres.statements import Timeouts
from server.postgres.unused import UnusedConnections
from server.query import catalogue
from server.settings import Settings
from server.shutdown import DATABASE_SECONDS
from server.threads import Threads, in_thread

# Connections reserved for statements of ours about the catalogue, which are short whatever a request says.
CONTROL_CONNECTIONS = 2
# How many of them may list relations or search columns, so that one is left for looking up a single relation.
LISTING_CONNECTIONS = CONTROL_CONNECTIONS - 1
# Connections reserved for queries of requests of which no row is read: to explain or check them, and to find out which
# part of them fails.
PLANNING_CONNECTIONS = 2
# Connections reserved for previews.
PREVIEW_CONNECTIONS = 3
# For how many exports at once there are connections for further readers: some read what they had begun before they
# stepped back while others begin.
EXPORTS_WITH_READERS = 2
# Seconds to wait for a control connection, or one for planning.
CONTROL_WAIT = 3.0
# Seconds until a health check must have succeeded. Probes rarely wait longer.
HEALTH_TIMEOUT = 3.0
# Seconds that a control session waits for a lock, at most. Fewer than CONTROL_WAIT, so that another request that waits
# for the connection gets it in time.
CONTROL_LOCK_TIMEOUT = 2.0
# Seconds that a session may be idle in its transaction, beyond STALL_TIMEOUT, which limits how long a client may pause.
# After that this process has hung.
IDLE_MARGIN = 60.0


def reading_connections(settings: Settings) -> int:
    """Return how many connections of one worker may read rows at once."""
    return settings.max_concurrent_exports + PREVIEW_CONNECTIONS + _spare_readers(settings)


def _spare_readers(settings: Settings) -> int:
    # In addition to the exports' own connections: the readers of one export must not keep another from starting.
    return (settings.most_readers - 1) * EXPORTS_WITH_READERS


class Database:
    """The connections of one worker process. Open it after the fork, on the event loop that uses it.

    most_readers: how many connections one export may read with at once.
    """

    def __init__(self, settings: Settings, threads: Threads, workers: SessionsOfWorkers | None = None) -> None:
        """threads: `rows` must have a thread for each of the `reading_connections`. workers: None if it is alone."""
        self._workers = workers
        self._schemas = settings.export_schemas
        self._timeouts = Timeouts(
            statement=settings.statement_timeout,
            lock=settings.lock_timeout,
            idle=settings.stall_timeout + IDLE_MARGIN if settings.stall_timeout else 0.0,
        )
        self._control_timeouts = replace(
            self._timeouts,
            statement=CONTROL_TIMEOUT,
            lock=min(settings.lock_timeout or CONTROL_LOCK_TIMEOUT, CONTROL_LOCK_TIMEOUT),
        )
        self._export_slots = Slots(settings.max_concurrent_exports, 0.0, "All export slots of this server are in use.")
        self._preview_slots = Slots(PREVIEW_CONNECTIONS, CONTROL_WAIT, "Other previews take long at the moment.")
        self._planning_slots = Slots(PLANNING_CONNECTIONS, CONTROL_WAIT, "Other queries are checked at the moment.")
        self._control_slots = Slots(CONTROL_CONNECTIONS, CONTROL_WAIT, "The catalogue is busy.")
        self._listing_slots = Slots(LISTING_CONNECTIONS, CONTROL_WAIT, "The catalogue is busy.")
        self.most_readers = settings.most_readers
        self._spare_readers = SpareReaders(settings.most_readers, _spare_readers(settings))
        most_idle = reading_connections(settings) + CONTROL_CONNECTIONS + PLANNING_CONNECTIONS
        self._connections = Connections(settings.dsn, most_idle, threads.names, UnusedConnections(workers))
        self._planning = PlanningLimit(settings.plan_timeout, self)
        self._health_check: asyncio.Task[None] | None = None
        self._threads = threads
        # The sessions that are in use, each with a future that is done when the session is left. From then on its
        # `_finish` is in the background.
        self._sessions: dict[Session, asyncio.Future[None]] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Database:
        # Opens no connection: the server must also start while the database is away.
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the threads that read, wait at most DATABASE_SECONDS for all sessions to end, and close the connections.

        A connection that a thread still reads from stays open until the process ends: libpq would read freed memory.
        """
        for session in self._sessions:
            session.stop()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATABASE_SECONDS):
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
        """Open a session in an export slot. Raise ServerBusy if all slots are in use; DatabaseUnavailable.

        Afterwards the connection returns to the pool. If a statement is still running, the connection is closed and the
        statement cancelled in the server, without waiting for that.
        """
        async with self._export_slots.slot():
            with self._spare_readers.export():
                async with self._transaction(self._timeouts) as session:
                    yield session

    @contextlib.asynccontextmanager
    async def preview_session(self, *, wait: float) -> AsyncIterator[Session]:
        """Open a session on one of the PREVIEW_CONNECTIONS. Raise ServerBusy if none is free in time.

        wait: seconds, more than 0, for the connection and then for a lock, which LOCK_TIMEOUT bounds too.
        """
        loop = asyncio.get_running_loop()
        latest = loop.time() + wait
        async with self._preview_slots.slot(wait=wait):
            left = max(latest - loop.time(), 0.01)
            lock = min(left, self._timeouts.lock or left)
            async with self._transaction(replace(self._timeouts, lock=lock)) as session:
                yield session

    @contextlib.asynccontextmanager
    async def planning_session(self) -> AsyncIterator[Session]:
        """Open a session for a query of a request of which no row is read, on one of the PLANNING_CONNECTIONS.

        Its limits are those of a control session.
        """
        async with self._planning_slots.slot(), self._transaction(self._control_timeouts) as session:
            yield session

    @contextlib.asynccontextmanager
    async def control_session(self) -> AsyncIterator[Session]:
        """Open a session for a short statement of ours, on one of the CONTROL_CONNECTIONS.

        Each statement ends after CONTROL_TIMEOUT, and a wait for a lock after CONTROL_LOCK_TIMEOUT. Raise ServerBusy if
        no connection is free within CONTROL_WAIT; DatabaseUnavailable.
        """
        async with self._control_slots.slot(), self._transaction(self._control_timeouts) as session:
            yield session

    def spare_reader(self) -> contextlib.AbstractAsyncContextManager[SpareReader]:
        """Wait until a further reader of an export is useful: see `SpareReaders.reader`."""
        return self._spare_readers.reader()

    @contextlib.asynccontextmanager
    async def reader_session(self, snapshot: str) -> AsyncIterator[Session]:
        """Open a session that has the snapshot of another one, within `spare_reader`. Raise DatabaseUnavailable.

        snapshot: the name that `Session.export_snapshot` returned.
        """
        async with self._transaction(self._timeouts, snapshot) as session:
            yield session

    async def relations(self, *, columns: bool = True) -> list[catalogue.Relation]:
        """Return all relations that may be exported. Raise ServerBusy, DatabaseUnavailable.

        columns: look up the columns too, which takes most of the time. Without them, `Relation.columns` is empty.
        """
        listing = catalogue.LIST_RELATIONS if columns else catalogue.LIST_WITHOUT_COLUMNS
        async with self._listing_slots.slot(), self.control_session() as session:
            rows = await session.query(listing, (self._schemas,), prepare=True)
        # There may be ten thousand of them.
        return await in_thread(self._threads.pages, lambda: [catalogue.relation_from_row(row) for row in rows])

    async def matching_columns(self, words: Sequence[str]) -> dict[int, dict[str, list[str]]]:
        """Return the first columns whose names contain a word, by the OID of their relation and the word.

        words: in lower case. Partitions are left out. Raise ServerBusy, DatabaseUnavailable.
        """
        async with self._listing_slots.slot(), self.control_session() as session:
            rows = await session.query(catalogue.MATCHING_COLUMNS, (self._schemas, list(words)), prepare=True)
        found: dict[int, dict[str, list[str]]] = {}
        for row in rows:
            found.setdefault(row["oid"], {})[row["word"]] = row["columns"]
        return found

    async def ping(self) -> None:
        """Check that exports can work now: open a transaction. Raise DatabaseUnavailable and other ExportErrors.

        Uses a connection that nothing else uses, and that gives way to an export if there is no other. Those that ask
        at the same time get the same answer. If the database has no connection free because sessions of this server
        hold them, exports do work.
        """
        if self._health_check is None or self._health_check.done():
            self._health_check = self.in_background(self._check_health())
            self._health_check.add_done_callback(lambda check: check.cancelled() or check.exception())  # is known
        await asyncio.shield(self._health_check)

    async def _check_health(self) -> None:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT):
                async with self._transaction(self._control_timeouts, kind="health") as session:
                    await session.open()
        except errors.TooManyConnections:
            if not self._sessions and not (self._workers and self._workers.others_have_some()):
                raise
        except TimeoutError:
            raise errors.DatabaseUnavailable("The database does not answer in time.") from None

    @contextlib.asynccontextmanager
    async def _transaction(
        self, timeouts: Timeouts, snapshot: str | None = None, *, kind: str = ""
    ) -> AsyncIterator[Session]:
        """Open a transaction. kind: of the connection, which only sessions of this kind use."""
        connection = await self._connections.acquire(kind)
        session = Session(connection, timeouts, self._schemas, self._threads, self._planning)
        self._sessions[session] = asyncio.get_running_loop().create_future()
        self._mark()
        try:
            session.begin(snapshot)
            yield session
        finally:
            # In a task of its own: a client that leaves after the last byte cancels this task, which must not cost the
            # connection, since it only has to ROLLBACK.
            finishing = self.in_background(self._finish(session, kind))
            self._sessions.pop(session).set_result(None)
            self._mark()
            await asyncio.shield(finishing)

    def _mark(self) -> None:
        if self._workers is not None:
            self._workers.mark(bool(self._sessions))

    async def _finish(self, session: Session, kind: str) -> None:
        self._connections.release(session.connection, kind, reusable=await session.end())
        if session.statement_left_running and session.snapshot_at is not None:
            self.in_background(self.cancel(session.backend_pid, session.snapshot_at))

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that ends before the connections are closed."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def waits_for_lock(self, backend_pid: int, snapshot_at: datetime.datetime) -> bool:
        """Return whether the transaction that started at `snapshot_at` waits for a lock; False if nobody can tell."""
        try:
            async with self._transaction(self._control_timeouts) as session:
                return bool(await session.query(statements.WAITING, (backend_pid, snapshot_at.isoformat())))
        except errors.ExportError:
            return False

    async def cancel(self, backend_pid: int, snapshot_at: datetime.datetime) -> None:
        """Cancel the statement of the transaction that started at `snapshot_at`, over another connection."""
        try:
            # Without a control slot: one that waits for a lock must not keep a statement running.
            async with self._transaction(self._control_timeouts) as session:
                await session.query(statements.CANCEL, (backend_pid, snapshot_at.isoformat()))
        except errors.ExportError as error:
            emit(StatementNotCancelled(pid=backend_pid, reason=error.detail))
