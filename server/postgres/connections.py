"""Connections to PostgreSQL: opened, kept while idle, closed.

Runs no statement. `Connections` replaces aiopg's pool, which uses one address for good, makes every caller wait behind
a slow connect, wakes no waiter when a closed connection is released, and can hang when it is closed. `unused.py` keeps
the idle ones. How many connections there are is limited by `database.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import os
import socket
from concurrent.futures import Executor
from typing import Any

import psycopg2
import psycopg2.extensions

from server import errors
from server.events import emit
from server.postgres.connection import Connection
from server.postgres.events import DatabaseUnreachable
from server.postgres.libpq import report_sqlstates
from server.postgres.server_errors import SHUTTING_DOWN, connect_error
from server.postgres.unused import UnusedConnections
from server.settings import SettingsError

# Seconds until a connection must be open: long for a network, short for a person who waits.
CONNECT_TIMEOUT = 5.0
# Seconds to wait for room in the database, after unused connections were closed or other workers were asked to do so.
ROOM_SECONDS = 2.0
# Seconds between two attempts to connect meanwhile. A process of PostgreSQL ends within milliseconds.
ROOM_PAUSE = 0.05
# The version of the server as libpq numbers it. PostgreSQL 14 is the oldest one that is maintained.
OLDEST_SERVER = 140000


class Connections:
    """The connections of one worker process, for one event loop."""

    def __init__(self, dsn: str, most_idle: int, resolver: Executor, unused: UnusedConnections | None = None) -> None:
        """dsn: a libpq URI. most_idle: how many unused connections are kept of each kind.

        resolver: threads that look up names. unused: keeps them; None for one without other workers.
        """
        self._resolver = resolver
        self._dsn = dsn
        self._most_idle = most_idle
        self._unused = unused or UnusedConnections()
        self._in_use: set[Connection] = set()
        # Held while one address is tried, so at most for CONNECT_TIMEOUT, and not during a look-up. The wait for it is
        # part of each caller's own CONNECT_TIMEOUT.
        self._connecting = asyncio.Lock()
        self._closed = False

    def close(self) -> int:
        """Close every connection, also those in use, but none that a thread is reading from. Return how many are left.

        No connection can be acquired from then on; those that are released later are closed.
        """
        self._closed = True
        self._unused.stop()
        for connection in self._in_use:
            connection.close()
        return sum(not connection.closed for connection in self._in_use)

    async def acquire(self, kind: str = "") -> Connection:
        """Return an open connection: an unused one of this kind, or a new one. Raise DatabaseUnavailable."""
        if self._closed:
            raise _shutting_down()
        connection = self._unused.take(kind) or await self._open(kind)
        if self._closed:  # meanwhile
            connection.close()
            raise _shutting_down()
        self._in_use.add(connection)
        return connection

    def release(self, connection: Connection, kind: str = "", *, reusable: bool) -> None:
        """Take back a connection that `acquire` returned. reusable: it is as new, except for what Sluice prepared."""
        self._in_use.discard(connection)
        kept = reusable and not self._closed and self._unused.put(connection, kind, most=self._most_idle)
        if not kept:
            connection.close()

    async def _open(self, kind: str) -> Connection:
        """Return a new connection. If the database has none free, close unused ones here and in other workers."""
        try:
            try:
                return await self._open_once()
            except errors.TooManyConnections:
                if not self._unused.make_room():
                    raise
            return await self._open_in_time(kind)
        except errors.TooManyConnections as error:
            emit(DatabaseUnreachable(reason=error.server_message, sqlstate=error.sqlstate))
            raise

    async def _open_in_time(self, kind: str) -> Connection:
        """Try for ROOM_SECONDS, while processes of PostgreSQL end whose connections were closed."""
        deadline = asyncio.get_running_loop().time() + ROOM_SECONDS
        while True:
            await asyncio.sleep(ROOM_PAUSE)
            found = self._unused.take(kind)
            if found is not None:
                return found
            try:
                return await self._open_once()
            except errors.TooManyConnections:
                if asyncio.get_running_loop().time() > deadline:
                    raise

    async def _open_once(self) -> Connection:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                return await self._connect()
        except TimeoutError:
            emit(DatabaseUnreachable(reason=f"no connection within {CONNECT_TIMEOUT:g} s"))
            raise errors.DatabaseUnavailable("The database cannot be reached.") from None
        except (psycopg2.Error, OSError, UnicodeError) as error:
            unavailable, reason = connect_error(str(error))
            unavailable.server_message = reason
            if not isinstance(unavailable, errors.TooManyConnections):
                emit(DatabaseUnreachable(reason=reason, sqlstate=unavailable.sqlstate))
            raise unavailable from error

    async def _connect(self) -> Connection:
        """Return a connection to the first address that accepts one.

        Otherwise raise an error: that of the last address at which a server has answered, or else of the last address.

        Addresses are tried here, one by one: libpq would try them by itself, but each on a new socket, and aiopg
        watches only the first one. A host's name is looked up when its turn comes.
        """
        failures: list[Exception] = []
        for host in _hosts(self._dsn):
            try:
                addresses = await self._look_up(host)
            except (OSError, UnicodeError) as error:  # UnicodeError: not a possible name
                failures.append(error)
                continue
            for address in addresses:
                try:
                    async with self._connecting:
                        return await self._connect_to(address)
                except psycopg2.Error as error:
                    failures.append(error)
        answered = (each for each in reversed(failures) if connect_error(str(each))[0].sqlstate is not None)
        raise next(answered, failures[-1])

    async def _look_up(self, host: dict[str, str]) -> list[dict[str, str]]:
        """Return the parameters of each address of this host. Raise OSError or UnicodeError if it has none.

        libpq would block the event loop while it resolves a name. A look-up cannot be interrupted: one that hangs keeps
        its thread, and those that find no free thread time out with their caller.
        """
        name = host.get("host", "")
        if not name or name.startswith(("/", "@")):  # a folder of sockets, or an abstract socket
            return [host]
        if _is_address(name):
            return [{**host, "hostaddr": name}]
        find = functools.partial(socket.getaddrinfo, name, host["port"] or None, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._resolver, find)
        return [{**host, "hostaddr": str(address[0])} for *_, address in found]

    async def _connect_to(self, address: dict[str, str]) -> Connection:
        """Return a connection to this address. The caller holds `_connecting`."""
        options: dict[str, Any] = {
            "client_encoding": "UTF8",
            "application_name": "sluice",
            # GSS encryption is part of libpq: nothing else can read what it has encrypted.
            "gssencmode": "disable",
            **address,
        }
        connection = Connection(
            self._dsn,
            CONNECT_TIMEOUT,
            enable_hstore=False,  # costs a query
            enable_json=False,
            enable_uuid=False,
            **options,
        )
        report_sqlstates(connection.raw.pgconn_ptr)
        descriptor = connection.raw.fileno()
        try:
            await connection
        except BaseException:
            # libpq has closed the socket, of which the event loop knows nothing: uvloop would refuse to watch the next
            # connection with this descriptor. There is none yet, since connections are opened one at a time.
            with contextlib.suppress(OSError, RuntimeError):
                asyncio.get_running_loop().remove_reader(descriptor)
            raise
        # Before Python 3.12 asyncio.wait_for drops a cancellation that arrives together with the result. The caller
        # would then wait for the answer to its first statement, which behind a pooler may never come.
        if cancelled_from_here():
            connection.close()
            raise asyncio.CancelledError
        try:
            connection.take_over()
        except OSError:
            connection.close()
            raise
        if connection.raw.server_version < OLDEST_SERVER:
            connection.close()
            too_old = "The database is older than PostgreSQL 14, the oldest that Sluice reads."
            emit(DatabaseUnreachable(reason=too_old))
            raise errors.DatabaseUnavailable(too_old, hint="Ask the operator to upgrade PostgreSQL to 14 or later.")
        return connection


def _hosts(dsn: str) -> list[dict[str, str]]:
    """Return the parameters `host` and `port` of each host that the URI names, in order.

    A single {} if the URI is to be left to libpq: it names no host, or it gives addresses (PostgreSQL manual, "libpq",
    "Specifying Multiple Hosts").
    """
    parts = psycopg2.extensions.parse_dsn(dsn)
    hosts = parts.get("host", "").split(",")
    if "hostaddr" in parts or not any(hosts):
        return [{}]
    ports = parts.get("port", "5432").split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        return [{}]  # libpq says what is wrong
    return [{"host": host, "port": port} for host, port in zip(hosts, ports, strict=True)]


def _is_address(name: str) -> bool:
    """Return whether a host is given as a numeric IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _shutting_down() -> errors.DatabaseUnavailable:
    return errors.DatabaseUnavailable(SHUTTING_DOWN)


def cancelled_from_here() -> bool:
    """Return whether the current task is being cancelled.

    aiopg raises CancelledError for other reasons too. This tells them apart.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def check_dsn(dsn: str) -> None:
    """Raise SettingsError if libpq cannot parse this URI, or if GSS encryption is required, which Sluice cannot use.

    The error does not quote the URI: it may hold a password.
    """
    try:
        parts = psycopg2.extensions.parse_dsn(dsn)
    except psycopg2.Error:
        raise SettingsError("DATABASE_URL is not a connection URI that libpq understands") from None
    if parts.get("gssencmode", os.environ.get("PGGSSENCMODE")) == "require":
        raise SettingsError("GSS encryption cannot be used: replace gssencmode=require, for example by sslmode=require")
