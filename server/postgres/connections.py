"""Connections to PostgreSQL: made, kept while idle, thrown away; bounded by whoever asks for them.

With `session.py` the only importer of aiopg and psycopg2. Runs no statement. In place of aiopg's own pool, which
fixes one address for good, makes everybody wait behind a slow connect, wakes nobody when a closed connection
comes back, and can hang when it is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from concurrent.futures import Executor
from typing import Any

import aiopg
import psycopg2
import psycopg2.extensions

from server import errors
from server.events import emit
from server.postgres.events import DatabaseUnreachable
from server.settings import SettingsError

# Seconds: long for a network, short for a person.
CONNECT_TIMEOUT = 5.0


class Connections:
    """The connections of one process, for one event loop. dsn: a libpq URI; most_idle: kept while nobody uses them."""

    def __init__(self, dsn: str, most_idle: int, resolver: Executor) -> None:
        self._resolver = resolver
        self._dsn = dsn
        self._most_idle = most_idle
        self._idle: list[aiopg.Connection] = []
        self._in_use: set[aiopg.Connection] = set()
        self._connecting = asyncio.Lock()

    def close(self) -> None:
        """Close every connection, also those in use."""
        for connection in (*self._idle, *self._in_use):
            if not connection.closed:
                connection.close()
        self._idle.clear()

    async def acquire(self) -> aiopg.Connection:
        """An open connection, new where none is idle. Raises DatabaseUnavailable."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                break
        else:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT), self._connecting:
                    connection = await self._connect()
            except TimeoutError:
                emit(DatabaseUnreachable(reason=f"no connection within {CONNECT_TIMEOUT:g} s"))
                raise errors.DatabaseUnavailable("The database cannot be reached.") from None
            except (psycopg2.Error, OSError) as error:
                emit(DatabaseUnreachable(reason=str(error).strip()))
                raise errors.DatabaseUnavailable("The database cannot be reached.") from error
        self._in_use.add(connection)
        return connection

    async def _connect(self) -> aiopg.Connection:
        """A connection to the first address that gives one; raises what the last one raised."""
        addresses = await self._addresses()
        for address in addresses[:-1]:
            with contextlib.suppress(psycopg2.Error):
                return await self._connect_to(address)
        return await self._connect_to(addresses[-1])

    async def _connect_to(self, address: dict[str, str]) -> aiopg.Connection:
        options: dict[str, Any] = {"client_encoding": "UTF8", "application_name": "sluice", **address}
        connection = aiopg.Connection(
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

    def release(self, connection: aiopg.Connection, *, reusable: bool) -> None:
        """Take back a connection that `acquire` gave. reusable: no transaction is open and nothing runs."""
        self._in_use.discard(connection)
        if reusable and len(self._idle) < self._most_idle:
            self._idle.append(connection)
        elif not connection.closed:
            # aiopg closes a cancelled connection by itself. Closed again, it would stop the event loop from
            # watching that file descriptor, which may belong to another connection by then.
            connection.close()


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
