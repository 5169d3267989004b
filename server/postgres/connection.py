"""One connection: opened by libpq, then taken over, so that Sluice itself speaks the protocol on its socket.

Small queries run here, on the event loop, as a pipeline: all are sent at once and the answers are read up to
ReadyForQuery. `rows.py` reads the rows of an export in a thread. Either way the connection is clean when every Sync
that was sent has been answered and no byte is left over; otherwise it has to be closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import aiopg

from server import errors
from server.postgres import messages, tls
from server.postgres.queries import Query, Results, Row, encode_values
from server.postgres.server_errors import connection_lost, error_in
from server.postgres.wire import Wire
from server.threads import give_way

# The length that the first message after those of libpq may state. If libpq has read the beginning of a message, the
# rest of it comes first, which is the end of a text. The four bytes that are taken for a length there hold characters
# of the text. If only the zeros at its end are left, they are followed by the type of the next message (0x31 or more)
# and a zero. Either way the number is at least 0x3000. Notifications begin otherwise, but Sluice listens to none.
LONGEST_FIRST = 0x2FFF
# Bytes of one row of a small query. The plan of a query is a row. It repeats the conditions for each partition.
LONGEST_ROW = 24 << 20


class Connection(aiopg.Connection):
    """A connection of which libpq only makes and closes the socket.

    The only code that uses parts of aiopg.Connection that are not public: `_fileno`, the descriptor that the event loop
    watches, or None.

    direct: whether the server's process belongs to this connection alone; behind a pooler it does not. unanswered: how
    many Syncs were sent whose answer nobody has read.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take the arguments of aiopg.Connection."""
        # Held by the thread that reads, and by `close`.
        self._reading = threading.Lock()
        self._wire: Wire | None = None
        self._messages = messages.Messages(LONGEST_FIRST, LONGEST_ROW)
        self.unanswered = 0
        self._status = b""
        self._waiting: asyncio.Future[None] | None = None
        self._prepared: dict[str, str] = {}
        self._names = map("sluice_{}".format, itertools.count())
        self.direct = False
        super().__init__(*arguments, **options)

    def take_over(self) -> None:
        """Take the socket away from libpq and aiopg, once, right after the connection was opened.

        libpq has read up to the ReadyForQuery of its last statement. Messages that came after it, if any, belong to no
        statement, and libpq may have read them. If it holds the beginning of one, the first answer here is the rest of
        that message. It cannot pass for an answer: `Messages` finds no possible type and length in it (see
        LONGEST_FIRST), and the connection is closed.

        Raise OSError if TLS or GSS is in use in a way that only libpq can read.
        """
        descriptor = self.raw.fileno()
        asyncio.get_running_loop().remove_reader(descriptor)
        # When the connection is closed, aiopg leaves the event loop alone. It must: libpq may have closed the socket
        # before, and another connection may have its number meanwhile.
        self._fileno = None
        ssl = tls.ssl_of(self.raw.pgconn_ptr)
        if self.raw.info.ssl_in_use and not (ssl and tls.addresses()):
            raise OSError("the driver does not give access to the TLS session")
        self._wire = Wire(descriptor, ssl)

    @property
    def wire(self) -> Wire:
        """The bytes of the connection. Raise ConnectionLost once it is closed."""
        if self._wire is None or self.closed:
            raise connection_lost()
        return self._wire

    @property
    def prepared(self) -> int:
        """How many statements Sluice has prepared on it."""
        return len(self._prepared)

    @property
    def clean(self) -> bool:
        """Whether the server waits for a statement and everything that it has sent was read."""
        return not (self.closed or self.unanswered) and self._messages.empty

    @property
    def idle(self) -> bool:
        """Whether the connection is clean and in no transaction."""
        return self.clean and self._status == messages.IDLE

    def still_open(self) -> bool:
        """Return whether a clean connection is still open. Drop what the server has sent meanwhile."""
        try:
            while True:
                if any(True for _ in self._messages):
                    return False  # an answer to nothing
                data = self.wire.receive()
                if not data:
                    return data is None and self._messages.empty
                self._messages.feed(data)
        except (errors.ConnectionLost, OSError, messages.ProtocolError):
            return False

    async def run(self, queries: Sequence[Query], finished: list[list[Row]] | None = None) -> list[list[Row]]:
        """Send the queries together and return the rows of each, as dictionaries by column name.

        finished: an empty list, which gets the rows of each query as soon as it ends. If one fails, those after it are
        not run. Raise what `server_errors.error_for` makes of the server's error; or ConnectionLost, AnswerTooLarge,
        after which the connection is closed. If the caller is cancelled, the queries may still run. The connection is
        not `clean` then and takes no more queries.
        """
        if self.unanswered:
            raise connection_lost()
        parsed: list[tuple[str, str]] = []  # the text and the name of each statement that is parsed, "" for unnamed
        between = b"" if finished is None else messages.FLUSH
        data = b"".join([part for query in queries for part in (*self._messages_for(query, parsed), between)])
        results = Results(queries, finished)
        self.unanswered += 1
        try:
            await self._exchange(data + messages.SYNC, results)
            if results.error is not None:
                raise error_in(results.error)
        except (OSError, messages.ProtocolError):
            self._lose()
            raise connection_lost() from None
        except errors.ConnectionLost:
            self.close()
            raise
        finally:
            self._prepared.update(pair for pair in parsed[: results.parsed] if pair[1])
        return results.finished

    def _messages_for(self, query: Query, parsed: list[tuple[str, str]]) -> Iterator[bytes]:
        name = self._prepared.get(query.sql)
        if name is None:
            # A pooler may give the next transaction to another server, which knows no names of this one.
            name = next(self._names) if query.prepare and self.direct else ""
            parsed.append((query.sql, name))
            yield messages.parse(query.sql, name, query.types)
        if not query.runs:
            yield messages.describe_statement(name)
            return
        yield messages.bind(encode_values(query.values), statement=name)
        yield messages.describe()
        yield messages.execute()
        if query.then is not None:
            yield messages.FLUSH

    async def _exchange(self, data: bytes, results: Results) -> None:
        """Send the data and take the answers up to ReadyForQuery."""
        began = time.perf_counter()
        while True:
            if data:
                data = data[self.wire.send(data) :]
            # Also before everything is sent: the server may read no more until its answers are taken.
            received = self.wire.receive()
            if received == b"":
                self._lose()
                # What the server said before it closed the connection.
                raise connection_lost() if results.error is None else error_in(results.error)
            if received is None:
                await self.ready(sending=bool(data))
                began = time.perf_counter()
                continue
            self._messages.feed(received)
            for kind, body in self._messages:
                if results.take(kind, body):
                    self.unanswered -= 1
                    self._status = body
                    return
            if self._messages.row_left:
                self._lose()
                raise errors.AnswerTooLarge("PostgreSQL's answer about the relation is too large.")
            # The list of all relations may have megabytes, which come in small pieces without a pause.
            if await give_way(began):
                began = time.perf_counter()

    def _lose(self) -> None:
        """Close the connection, on which no answer can come any more."""
        self.unanswered = 0
        self.close()

    async def ready(self, *, sending: bool = False) -> None:
        """Wait until bytes have arrived, or the connection is closed. sending: or until bytes can be sent."""
        loop, descriptor = asyncio.get_running_loop(), self.wire.descriptor
        waiting = self._waiting = loop.create_future()
        loop.add_reader(descriptor, _finish, waiting)
        if sending:
            loop.add_writer(descriptor, _finish, waiting)
        try:
            await waiting
        finally:
            # After `close` the number may belong to another connection.
            if self._waiting is waiting:
                self._waiting = None
                loop.remove_reader(descriptor)
                if sending:
                    loop.remove_writer(descriptor)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Wire | None]:
        """Keep the connection open while this thread reads from it. Yield its bytes, None if it is closed.

        Enter it in the thread that reads.
        """
        with self._reading:
            yield None if self.closed else self._wire

    def close(self) -> asyncio.Future[None]:
        """Close the connection, unless a thread is reading from it, which libpq does not survive."""
        if not self.closed and self._reading.acquire(blocking=False):
            try:
                if self._waiting is not None and self._wire is not None:
                    waiting, self._waiting = self._waiting, None
                    loop = asyncio.get_running_loop()
                    loop.remove_reader(self._wire.descriptor)
                    loop.remove_writer(self._wire.descriptor)
                    _finish(waiting)  # which then finds no `wire`
                return super().close()
            finally:
                self._reading.release()
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def _finish(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
