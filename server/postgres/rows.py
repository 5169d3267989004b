"""The rows of a running SELECT, encoded in a thread as they arrive.

The statement is sent as it is, without a cursor: PostgreSQL sends its rows straight from the executor instead of
storing each FETCH first, may plan it in parallel, and waits when the socket is full. libpq hands the rows over a
few at a time, so memory is bounded by those few and not by a guess at the size of rows to come. Knows nothing of
plans or HTTP.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import socket
from types import TracebackType
from typing import Protocol

import aiopg

from server import errors
from server.chunk import Chunk
from server.postgres import libpq
from server.postgres.server_errors import connection_lost, statement_timed_out

# How a read ended; the same numbers in server/_encode.pyx.
MORE, END, FAILED, LOST, WAITED, WOKEN = range(6)


class RowReader(Protocol):
    """The native encoder. read: (lines, rows, how it ended), blocking; failure: the PGresult with the error."""

    def read(self, connection: int, wake: int, most: int, patience: int, /) -> tuple[bytes, int, int]: ...

    def failure(self) -> int: ...


class Rows:
    """SELECTs on one connection, one after another; nothing else may use the connection meanwhile.

    running: whether a statement has been sent whose rows have not all been read. lost: whether the connection is gone.
    """

    def __init__(
        self,
        connection: aiopg.Connection,
        reader: RowReader,
        threads: concurrent.futures.Executor,
        patience: float,
    ) -> None:
        """patience: seconds to wait for the next row, 0 for ever."""
        self._connection = connection
        self._reader = reader
        self._threads = threads
        self._patience = patience
        self.running = False
        self.lost = False

    def __enter__(self) -> Rows:
        self._wake, self._wake_up = socket.socketpair()
        self._pgconn: int = self._connection.raw.pgconn_ptr
        self._descriptor = self._connection.raw.fileno()
        # aiopg would take the rows for an answer to itself. Without the descriptor it leaves the event loop alone
        # when it closes the connection: libpq may have closed the socket by then, and another may have its number.
        asyncio.get_running_loop().remove_reader(self._descriptor)
        self._connection._fileno = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._wake.close()
        self._wake_up.close()
        if not self.running and not self.lost:
            connection = self._connection
            connection._fileno = self._descriptor
            asyncio.get_running_loop().add_reader(self._descriptor, connection._ready, connection._weakref)

    def start(self, sql: bytes, chunk_rows: int) -> None:
        """Send the statement. chunk_rows: how many rows libpq may hold at once. Raises ConnectionLost."""
        self.running = True
        if not libpq.send_query(self._pgconn, sql, chunk_rows):
            raise self._loss()

    async def read(self, most: int) -> Chunk:
        """The next lines, about `most` bytes; `running` says whether there are more."""
        patience = round(self._patience * 1000) if self._patience else -1
        lines, rows, ended = await self._in_thread(most, patience)
        failure = self._reader.failure()
        if failure:
            error = libpq.take_error(failure)
            self.running = ended != FAILED
            raise self._loss() if isinstance(error, errors.ConnectionLost) else error
        if ended == LOST:
            raise self._loss()
        if ended == WAITED:
            raise statement_timed_out(self._patience)
        self.running = ended != END
        return Chunk(lines, rows)

    def _loss(self) -> errors.ConnectionLost:
        self.running, self.lost = False, True
        return connection_lost()

    async def _in_thread(self, most: int, patience: int) -> tuple[bytes, int, int]:
        loop = asyncio.get_running_loop()
        reading = loop.run_in_executor(
            self._threads, self._reader.read, self._pgconn, self._wake.fileno(), most, patience
        )
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            # The thread must have let go of the connection before anybody closes it.
            with contextlib.suppress(OSError):
                os.write(self._wake_up.fileno(), b"!")
            while not reading.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([reading])
            reading.exception()
            if failure := self._reader.failure():  # nobody will ask for it
                libpq.take_error(failure)
            raise
