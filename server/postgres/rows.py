"""The rows of a running SELECT, encoded in a thread as they arrive.

The statement is sent as it is, without a cursor: PostgreSQL sends its rows straight from the executor instead of
storing each FETCH first, may plan it in parallel, and waits when the socket is full. libpq hands over a few rows at a
time, so memory is bounded by those rows and not by an estimate of how large the next ones are. Must not know plans or
HTTP.
"""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import Executor
from types import TracebackType
from typing import Protocol

from server import errors
from server.chunk import Chunk
from server.postgres import libpq
from server.postgres.connections import Connection
from server.postgres.server_errors import SHUTTING_DOWN, connection_lost, statement_timed_out
from server.threads import in_thread

# How a read ended: the enum MORE, END, … of server/encode/_encode.pyx has the same numbers.
MORE, END, FAILED, LOST, TIMED_OUT, WOKEN = range(6)


class RowReader(Protocol):
    """Reads the rows of a running statement and encodes them. The native encoder is one."""

    def read(self, connection: int, wake: int, most: int, patience: int, /) -> tuple[bytes, int, int]:
        """Block until `most` bytes of lines are there, or the statement ends, or its rows come slowly.

        connection: the address of a PGconn. wake: a descriptor; the call ends (WOKEN) when it is readable. patience:
        milliseconds to wait for the next row (TIMED_OUT), -1 for no limit. Return the lines, how many they are, and how
        the read ended: MORE to WOKEN.
        """
        ...

    def failure(self) -> int:
        """Return the address of the PGresult that says why the statement FAILED, once, for the caller to free; or 0."""
        ...


class Rows:
    """SELECTs on one connection, one after another. Nothing else may use the connection within the `with` block.

    running: whether a statement was sent whose rows have not all been read. lost: whether the connection broke.
    """

    def __init__(self, connection: Connection, reader: RowReader, threads: Executor, patience: float) -> None:
        """patience: seconds to wait for the next row, 0 for no limit."""
        self._connection = connection
        self._reader = reader
        self._threads = threads
        self._patience = patience
        self._stopped = False
        self.running = False
        self.lost = False

    def __enter__(self) -> Rows:
        # A byte sent at one end ends the read of the thread, which polls the other end.
        self._wake, self._wake_up = socket.socketpair()
        self._connection.detach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._wake.close()
        self._wake_up.close()
        if not self.running and not self.lost:
            self._connection.reattach()

    def start(self, sql: bytes, chunk_rows: int) -> None:
        """Send a statement; `read` returns its rows. The rows of the one before must all have been read.

        sql: one SELECT with its values in place. chunk_rows: how many rows libpq may hold at once. Raise ConnectionLost
        if the connection is closed or breaks.
        """
        self.running = True
        if not libpq.send_query(self._connection.pgconn, sql, chunk_rows):
            raise self._loss()

    async def read(self, most: int) -> Chunk:
        """Return the next rows as lines, encoded by the reader in a thread.

        most: a read ends with the chunk of rows that reaches this many bytes. It ends with fewer bytes at the end of
        the rows, and when the next row takes long to come; there may be no row at all. Afterwards `running` is False
        if these were the last rows.

        Raise QueryTimeout if no row comes within the patience, ConnectionLost if the server closes the connection,
        QueryCancelled after `stop`, and otherwise the error that the server sent, as `server_errors.error_for`
        translates it. If the caller is cancelled, the thread is woken and has ended when CancelledError is raised.

        Source: PostgreSQL manual, "libpq", "Retrieving Query Results in Chunks".
        """
        if self._stopped:
            raise _stopped()
        lines, rows, ended = await in_thread(
            self._threads, self._read, most, interrupt=self._interrupt, discard=self._free_error
        )
        failure = self._reader.failure()
        if failure:
            error = libpq.take_error(failure)
            self.running = ended != FAILED
            raise self._loss() if isinstance(error, errors.ConnectionLost) else error
        if ended == LOST:
            raise self._loss()
        if ended == TIMED_OUT:
            raise statement_timed_out(self._patience)
        if ended == WOKEN:
            raise _stopped()
        self.running = ended != END
        return Chunk(lines, rows)

    def stop(self) -> None:
        """Make the current read and every later one raise QueryCancelled. The statement may still run."""
        self._stopped = True
        if self.running:
            self._interrupt()

    def _read(self, most: int) -> tuple[bytes, int, int]:
        # In the thread.
        patience = round(self._patience * 1000) if self._patience else -1
        with self._connection.reading() as pgconn:
            if not pgconn:
                return b"", 0, LOST
            return self._reader.read(pgconn, self._wake.fileno(), most, patience)

    def _interrupt(self) -> None:
        with contextlib.suppress(OSError):  # closed: nothing reads any more
            self._wake_up.send(b"!")

    def _free_error(self, read: tuple[bytes, int, int]) -> None:
        if failure := self._reader.failure():
            libpq.take_error(failure)

    def _loss(self) -> errors.ConnectionLost:
        self.running, self.lost = False, True
        return connection_lost()


def _stopped() -> errors.QueryCancelled:
    return errors.QueryCancelled(SHUTTING_DOWN)
