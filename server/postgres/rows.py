"""The rows of an export: pulled from a named portal and encoded as they arrive, in a thread unless they are few.

The portal is a server-side cursor. PostgreSQL sends its rows straight from the executor, suspends it after each batch,
and waits when the socket is full. Must not know plans or HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from types import TracebackType

from server import errors
from server.chunk import Chunk
from server.postgres import messages
from server.postgres.connection import Connection
from server.postgres.queries import Value, encode_values
from server.postgres.reader import BATCH_ROWS, END, FAILED, LOST, ROOM, TIMED_OUT, WOKEN, RowReader
from server.postgres.server_errors import SHUTTING_DOWN, connection_lost, error_in, statement_timed_out
from server.threads import in_thread

# Seconds to wait on the event loop for the first bytes. Most small results are complete with them and cost no thread.
AT_ONCE = 0.02

# The name of the portal: it stands in pg_cursors.
PORTAL = "sluice"


@dataclass(frozen=True, slots=True)
class Select:
    """One SELECT whose rows are the lines of a file.

    sql: with the parameters $1, $2, … values: theirs. batches: how many Executes with a row limit to send at once; 0 to
    execute the portal as a whole, which is what a parallel plan needs (PostgreSQL manual, "When Can Parallel Query Be
    Used?").
    """

    sql: str
    values: Sequence[Value] = ()
    batches: int = 0


_NEXT_BATCH = messages.execute(PORTAL, BATCH_ROWS) + messages.SYNC


class Rows:
    """SELECTs on one connection, one after another. Nothing else may use the connection within the `with` block.

    patience: seconds to wait for the next row, 0 for no limit. pending: statements that were started and have not
    ended, 0 once the connection is lost. wanted: how many bytes of a value have to be held before the next read can go
    on (`hold`, `pass_over`), 0 for none.
    """

    def __init__(self, connection: Connection, reader: RowReader, threads: Executor, patience: float) -> None:
        self._connection = connection
        self._reader = reader
        self._threads = threads
        self.patience = patience
        self._parsed = ""
        self._begun = False
        self._stopped = False
        # Made when a thread is needed. A byte sent at one end ends the read of the thread, which polls the other end.
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self.pending = 0
        self.wanted = 0

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for end in self._wake or ():
            end.close()
        self._reader.close()

    @property
    def clean(self) -> bool:
        """Whether the connection can take other statements: the server has answered, and nothing is left over."""
        return self._reader.clean

    def start(self, select: Select) -> None:
        """Send a SELECT with the next `read`. It runs after those that were started before and have not ended.

        One with batches must be the last until it ends. Raise InvalidRequest for too many values.
        """
        # Close the portal before this one, which has the same name.
        bound = messages.close(PORTAL) + messages.bind(encode_values(select.values), portal=PORTAL)
        if select.sql != self._parsed:
            bound = messages.parse(select.sql) + bound + messages.describe(PORTAL)
            self._parsed = select.sql
        if select.batches:
            self._reader.start(bound + select.batches * _NEXT_BATCH, select.batches, _NEXT_BATCH)
        else:
            self._reader.start(bound + messages.execute(PORTAL) + messages.SYNC, 1, b"")
        self.pending += 1

    async def read(self, most: int) -> Chunk:
        """Return the next rows of the oldest statement as lines, encoded by the reader in a thread.

        What arrives within AT_ONCE is read and encoded on the event loop.

        most: a read ends with the row that reaches this many bytes. It ends with fewer bytes at the end of the
        statement, after which `pending` is smaller by one, when the next row takes long to come, and before a value
        that has to be held (`wanted`). There may be no row at all, and a row that is larger than `most` may come in
        several reads.

        Raise QueryTimeout if nothing comes within the patience, ConnectionLost if the server closes the connection,
        QueryCancelled after `stop`, and otherwise the error that the server sent, as `server_errors.error_for`
        translates it. If the caller is cancelled, the thread is woken and has ended when CancelledError is raised.

        Source: PostgreSQL manual, "Frontend/Backend Protocol", "Extended Query".
        """
        if self._stopped:
            raise _stopped()
        result = None if self._begun else await self._read_arrived(most)
        if result is None:
            if self._stopped:  # meanwhile
                raise _stopped()
            self._wake = self._wake or socket.socketpair()
            wake = self._wake[1].fileno()
            result = await in_thread(self._threads, self._read, wake, most, interrupt=self._interrupt)
        lines, rows, ended = result
        if ended in (FAILED, LOST):
            failure = self._reader.failure()
            self.pending = 0
            raise connection_lost() if failure is None else error_in(failure)
        if ended == TIMED_OUT:
            raise statement_timed_out(self.patience)
        if ended == WOKEN:
            raise _stopped()
        self.pending -= ended == END
        self.wanted = self._reader.wanted if ended == ROOM else 0
        return Chunk(lines, rows)

    @property
    def wanted_column(self) -> int:
        """The number of the column of the value that has to be held, counted from 0."""
        return self._reader.column

    @property
    def held_bytes(self) -> int:
        """How many bytes of a value are held since `hold`."""
        return self._reader.held_bytes

    def hold(self) -> None:
        """Let the next read hold the value of `wanted` bytes."""
        self._reader.hold()

    def pass_over(self) -> None:
        """Let the reads go on without holding the value of `wanted` bytes, for lines that nobody uses."""
        self._reader.pass_over()

    def stop(self) -> None:
        """Make every later read raise QueryCancelled, and the current one unless it ends by itself within AT_ONCE.

        The statement may still run.
        """
        self._stopped = True
        if self.pending:
            self._interrupt()

    async def _read_arrived(self, most: int) -> tuple[bytes, int, int] | None:
        """Send the first statement and read what arrives at once. Return None if a thread has to go on."""
        self._begun = True
        arrived = self._arrived(most)
        if arrived is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AT_ONCE):
                    await self._connection.ready()
            arrived = self._arrived(most)
        return arrived

    def _arrived(self, most: int) -> tuple[bytes, int, int] | None:
        with self._connection.reading() as wire:
            return (b"", 0, LOST) if wire is None else self._reader.read_arrived(wire, most)

    def _read(self, wake: int, most: int) -> tuple[bytes, int, int]:
        # In the thread.
        patience = round(self.patience * 1000) if self.patience else -1
        with self._connection.reading() as wire:
            if wire is None:
                return b"", 0, LOST
            return self._reader.read(wire, wake, most, patience)

    def _interrupt(self) -> None:
        if self._wake is not None:
            with contextlib.suppress(OSError):  # closed: nothing reads any more
                self._wake[0].send(b"!")


def _stopped() -> errors.QueryCancelled:
    return errors.QueryCancelled(SHUTTING_DOWN)
