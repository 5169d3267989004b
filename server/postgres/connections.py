"""Connections to PostgreSQL: opened, detached for a thread, kept while idle, closed.

Runs no statement. `Connections` replaces aiopg's pool, which uses one address for good, makes every caller wait
behind a slow connect, wakes no waiter when a closed connection is released, and can hang when it is closed. How many
connections there are is limited by `database.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

import aiopg
import psycopg2
import psycopg2.extensions

from server import errors
from server.events import emit
from server.postgres.events import DatabaseUnreachable
from server.settings import SettingsError

# Seconds until a connection must be open: long for a network, short for a person who waits.
CONNECT_TIMEOUT = 5.0


class Connection(aiopg.Connection):
    """A connection that can be detached from the event loop, for a thread to read from.

    The only code that uses parts of aiopg.Connection that are not public: `_fileno`, the descriptor that the event loop
    watches, or None; `_ready`, called with `_weakref` when the descriptor is readable.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take the arguments of aiopg.Connection."""
        # Held by the thread that reads, and by `close`.
        self._reading = threading.Lock()
        super().__init__(*arguments, **options)

    @property
    def detached(self) -> bool:
        """Whether the event loop does not watch the connection."""
        return self._fileno is None

    @property
    def pgconn(self) -> int:
        """The address of libpq's PGconn. The connection must be open."""
        address: int = self.raw.pgconn_ptr
        return address

    def detach(self) -> None:
        """Take the connection out of the event loop, so that aiopg does not read what a thread is to read.

        When a detached connection is closed, aiopg leaves the event loop alone. It must: libpq may have closed the
        socket before, and another connection may have its number by then.
        """
        descriptor = self.raw.fileno()
        asyncio.get_running_loop().remove_reader(descriptor)
        self._fileno = None

    def reattach(self) -> None:
        """Give a detached connection back to the event loop. Nothing may be running on it. Ignore a closed one."""
        if not self.closed:
            self._fileno = self.raw.fileno()
            asyncio.get_running_loop().add_reader(self._fileno, self._ready, self._weakref)

    @contextlib.contextmanager
    def reading(self) -> Iterator[int]:
        """Keep the connection open while this thread reads from it. Yield `pgconn`, or 0 if it is closed already.

        Enter it in the thread that reads.
        """
        with self._reading:
            yield 0 if self.closed else self.pgconn

    def close(self) -> asyncio.Future[None]:
        """Close the connection, unless a thread is reading from it, which libpq does not survive.

        A connection that is closed already is left alone: aiopg closes that of a cancelled statement by itself. If it
        closed it again, it would stop the event loop from watching a descriptor that another connection may have now.
        """
        if not self.closed and self._reading.acquire(blocking=False):
            try:
                return super().close()
            finally:
                self._reading.release()
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def bound(self, sql: str, values: Mapping[str, str]) -> bytes:
        """Return the statement with its values in place of the placeholders, quoted by the driver."""
        with contextlib.closing(self.raw.cursor()) as cursor:
            text: bytes = cursor.mogrify(sql, values)
        return text


class Connections:
    """The connections of one worker process, for one event loop."""

    def __init__(self, dsn: str, most_idle: int, resolver: Executor) -> None:
        """dsn: a libpq URI. most_idle: how many unused connections are kept. resolver: threads that look up names."""
        self._resolver = resolver
        self._dsn = dsn
        self._most_idle = most_idle
        self._idle: list[Connection] = []
        self._in_use: set[Connection] = set()
        self._connecting = asyncio.Lock()
        self._closed = False

    def close(self) -> int:
        """Close every connection, also those in use, but none that a thread is reading from. Return how many are left.

        No connection can be acquired from then on; those that are released later are closed.
        """
        self._closed = True
        connections = [*self._idle, *self._in_use]
        self._idle.clear()
        for connection in connections:
            connection.close()
        return sum(not connection.closed for connection in connections)

    async def acquire(self) -> Connection:
        """Return an open connection: an idle one, or a new one if none is idle. Raise DatabaseUnavailable."""
        if self._closed:
            raise _shutting_down()
        connection = self._take_idle() or await self._open()
        if self._closed:  # meanwhile
            connection.close()
            raise _shutting_down()
        self._in_use.add(connection)
        return connection

    def release(self, connection: Connection, *, reusable: bool) -> None:
        """Take back a connection that `acquire` returned. reusable: no transaction is open and nothing runs."""
        self._in_use.discard(connection)
        if reusable and not self._closed and len(self._idle) < self._most_idle:
            self._idle.append(connection)
        else:
            connection.close()

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    async def _open(self) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT), self._connecting:
                return await self._connect()
        except TimeoutError:
            emit(DatabaseUnreachable(reason=f"no connection within {CONNECT_TIMEOUT:g} s"))
            raise errors.DatabaseUnavailable("The database cannot be reached.") from None
        except (psycopg2.Error, OSError) as error:
            emit(DatabaseUnreachable(reason=str(error).strip()))
            raise errors.DatabaseUnavailable("The database cannot be reached.") from error

    async def _connect(self) -> Connection:
        """A connection to the first address that gives one; raises what the last one raised."""
        addresses = await self._addresses()
        for address in addresses[:-1]:
            with contextlib.suppress(psycopg2.Error):
                return await self._connect_to(address)
        return await self._connect_to(addresses[-1])

    async def _connect_to(self, address: dict[str, str]) -> Connection:
        options: dict[str, Any] = {"client_encoding": "UTF8", "application_name": "sluice", **address}
        connection = Connection(
            self._dsn,
            CONNECT_TIMEOUT,
            enable_hstore=False,  # costs a query
            enable_json=False,
            enable_uuid=False,
            **options,
        )
        descriptor = connection.raw.fileno()
        try:
            await connection
        except BaseException:
            # libpq has closed the socket behind the event loop's back: uvloop would refuse to watch the next
            # one of this number. Nobody else has it yet, since connections are made one at a time.
            with contextlib.suppress(OSError, RuntimeError):
                asyncio.get_running_loop().remove_reader(descriptor)
            raise
        # Before Python 3.12 asyncio.wait_for drops a cancellation that arrives together with the result: whoever was
        # to give up would go on to wait for its first answer, which behind a pooler may never come.
        if cancelled_from_here():
            connection.close()
            raise asyncio.CancelledError
        return connection

    async def _addresses(self) -> list[dict[str, str]]:
        """What to add to the URI for each address of its hosts, in order.

        Looked up here because libpq would block the event loop, and tried one by one because libpq, going on
        to the next address, would change the socket that aiopg watches.
        """
        parts = psycopg2.extensions.parse_dsn(self._dsn)
        hosts = parts.get("host", "").split(",")
        if "hostaddr" in parts or not any(hosts):
            return [{}]
        ports = parts.get("port", "5432").split(",")
        addresses: list[dict[str, str]] = []
        for number, host in enumerate(hosts):
            port = ports[number] if len(ports) > 1 else ports[0]
            if not host or host.startswith(("/", "@")):
                addresses.append({"host": host, "port": port})
                continue
            try:
                found = await asyncio.get_running_loop().run_in_executor(
                    self._resolver, functools.partial(socket.getaddrinfo, host, port or None, type=socket.SOCK_STREAM)
                )
            except OSError:
                if number == len(hosts) - 1 and not addresses:
                    raise
                continue
            for *_, sockaddr in found:
                addresses.append({"host": host, "hostaddr": str(sockaddr[0]), "port": port})
        return addresses


def _shutting_down() -> errors.DatabaseUnavailable:
    return errors.DatabaseUnavailable("The server is shutting down.")


def cancelled_from_here() -> bool:
    """Whether somebody has cancelled the current task, as against a statement in the server."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def check_dsn(dsn: str) -> None:
    """Raises SettingsError where libpq cannot read this URI; without quoting it, since it may hold a password."""
    try:
        psycopg2.extensions.parse_dsn(dsn)
    except psycopg2.Error:
        raise SettingsError("DATABASE_URL is not a connection URI that libpq understands") from None
